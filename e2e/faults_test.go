package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/lab"
)

// The faults harness: one migration for each pair of a point, at which it is held, and a fault. In the end the tree must run on exactly one
// host, with all its pages and files right and not a step lost or made twice, as a witness outside both hosts sees it, and nothing may be left that
// should not. LAZYMIG_FAULTS=all walks all pairs, `make test-faults` every second one (LAZYMIG_FAULTS=half), and `make test` those of few.

// few are what `make test` has time for: each promise once.
var few = at(
	"dump/kill source",
	"asked/kill handler",
	"grant/kill agent",
	"granted/A's messages lost",
	"granted/kill CRIU",
	"letgo/kill source",
	"drain/kill FUSE daemon",
	"drain/kill guardian",
	"drain/no memory for the tree",
	"switch-commit/kill FUSE keeper",
	"switched/reset",
)

// trial is a case.
type trial struct {
	p point
	x fault
}

func (c trial) name() string { return c.p.name + "/" + c.x.name }

// trials are the cases to be walked. Every second one has each point and each fault in it.
func trials(how string) (all []trial) {
	for i, p := range points {
		for j, x := range faults {
			c := trial{p, x}
			switch {
			case x.at != nil && !slices.Contains(x.at, p.name): // it can't be there
			case how == "all", how == "half" && ((i+j)%2 == 0 || x.whole), slices.Contains(few, c.name()):
				all = append(all, c)
			}
		}
	}
	return all
}

// faulty is one case under way.
type faulty struct {
	r     *rig
	p     point
	x     fault
	g     *migration
	w     *witness
	proxy *proxy
	agent *agent // that the fault meets
	late  func() bool

	saidA, saidB int // length of logs before the fault
	noAgent      bool
}

// results are how cases ended.
type results struct {
	of    int // cases that were to run
	mu    sync.Mutex
	lines []string
	ends  map[string]int
	times []time.Duration
}

// outcome is what an end means for the migration.
func (c trial) outcome(end string) string {
	switch {
	case end == onB && c.x.name == "nothing":
		return "done"
	case end == onB:
		return "recovered: done all the same"
	case end == onA && c.p.handed:
		return "taken back: runs on A, with B's proof"
	case end == onA:
		return "aborted: runs on A as before"
	}
	return "ended with the capsule, by design"
}

func (s *results) add(c trial, end string, pause, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends[c.outcome(end)]++
	s.times = append(s.times, took)
	at := slices.IndexFunc(points, func(q point) bool { return q == c.p })
	s.lines = append(s.lines, fmt.Sprintf("%2d %-14s %-40s %-4s %6d ms %7.1f s", at, c.p.name, c.x.name, end, pause.Milliseconds(), took.Seconds()))
}

func (s *results) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d cases ran and ended well\n", len(s.lines), s.of)
	for _, k := range slices.Sorted(maps.Keys(s.ends)) {
		fmt.Fprintf(&b, "  %4d  %s\n", s.ends[k], k)
	}
	slices.Sort(s.lines)
	fmt.Fprintf(&b, "   point          fault%35s ends on, longest pause of its steps, time of the case\n%s", "", strings.Join(s.lines, "\n"))
	return b.String()
}

func TestFaults(t *testing.T) {
	how := os.Getenv("LAZYMIG_FAULTS")
	kerneltest.Leaks(t)
	s := &results{of: len(trials(how)), ends: map[string]int{}}
	t.Cleanup(func() { t.Log(s) })
	t.Run("cases", func(t *testing.T) {
		for _, c := range trials(how) {
			t.Run(strings.ReplaceAll(c.name(), "/", ":"), func(t *testing.T) {
				if how != "" {
					t.Parallel() // hosts of their own, which wait most of the time
				}
				oneFault(t, c, s)
			})
		}
	})
}

// TestFaultsHalf: what `make test-faults` walks is enough.
func TestFaultsHalf(t *testing.T) {
	half := trials("half")
	if len(half) < 200 {
		t.Errorf("%d cases", len(half))
	}
	for _, p := range points {
		if !slices.ContainsFunc(half, func(c trial) bool { return c.p == p }) {
			t.Errorf("no case at %s", p.name)
		}
	}
	for _, x := range faults {
		if !slices.ContainsFunc(half, func(c trial) bool { return c.x.name == x.name }) {
			t.Errorf("no case of %s", x.name)
		}
	}
	for _, name := range few {
		if !slices.ContainsFunc(half, func(c trial) bool { return c.name() == name }) {
			t.Errorf("there is no case %s", name)
		}
	}
	t.Logf("%d cases of %d", len(half), len(trials("all")))
}

// oneFault runs one case.
func oneFault(t *testing.T, c trial, s *results) {
	p, x, began := c.p, c.x, time.Now()
	f := &faulty{p: p, x: x}
	f.r = makeHosts(t, "steps")
	r, a, b := f.r, f.r.l.A, f.r.l.B
	f.w = newWitness(r)
	if x.proxied {
		f.proxy = newProxy(r)
		r.via = f.proxy.addr()
	}
	park := []string{"LAZYMIG_PARK=" + p.name + ":" + gate, "LAZYMIG_DEBUG=1"}
	debug := park[1:]
	if p.source {
		r.sourceEnv = park
		f.agent = r.agentWith(b, debug)
	} else {
		r.sourceEnv = debug
		f.agent = r.agentWith(b, park)
	}
	pid := f.start()
	r.eventually("witness to hear", func() bool { n, _ := f.w.last(); return n > 10 })
	args := []string{"--until", "drained"}
	if p.leaves {
		f.give()
		args = append(r.locals(a, b), "--until", "detached", "--with", given, "--remove-source-files")
	}
	if p.mode != "" {
		args = append(args, "--mode", p.mode)
	}
	f.g = r.begin(a, b, pid, args...)
	f.hold()
	x.do(f)
	for _, h := range []string{r.l.A.Path(gate), r.l.B.Path(gate)} {
		if err := os.WriteFile(h, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f.noAgent {
		_ = f.agent.cmd.Wait() // killed
		r.agentWith(b, debug)
	}
	if x.then != nil {
		x.then(f)
	}
	m := f.g.wait()
	end := f.end(m, x.want(p))
	f.w.verdict(t)
	if p.leaves {
		f.notLost()
	}
	if !t.Failed() {
		s.add(c, end, f.w.longest(), time.Since(began))
	}
}

// start starts the program that will move, and gives its PID.
func (f *faulty) start() int {
	r := f.r
	args := []string{r.dir + "/steps", "16", "/srv/j", witnessIP, strconv.Itoa(f.w.addr.Port)}
	if !f.x.streams {
		return r.spawn(r.l.A, args...).Pid
	}
	r.spawn(r.l.A, "/bin/sh", "-c", strings.Join(args, " ")+" | cat >/srv/out")
	r.eventually("program to run", func() bool { return r.sh(r.l.A, "pgrep -x steps; true") != "" })
	return r.pid(r.l.A)
}

// hold waits until the migration is held at its point, and notes how much has been said.
func (f *faulty) hold() {
	r := f.r
	r.t.Helper()
	r.eventually("migration to come to "+f.p.name, func() bool {
		if f.over() {
			r.t.Fatalf("it has ended before: %s%s", f.g.out.String(), f.g.errOut.String())
		}
		if f.p.source {
			return strings.Contains(f.sourceLog(), `"parked"`)
		}
		return strings.Contains(f.agent.log.String(), `"parked"`)
	})
	f.saidA, f.saidB = len(f.sourceLog()), len(f.agent.log.String())
}

func (f *faulty) sourceLog() string {
	logs, _ := filepath.Glob(f.r.l.A.Path("/var/lib/lazymig/*.log")) // the pattern is good
	var all strings.Builder
	for _, l := range logs {
		if b, err := os.ReadFile(l); err == nil {
			all.Write(b)
		}
	}
	return all.String()
}

// end waits until all has come to rest, and looks whether it has ended as it must.
func (f *faulty) end(m *moved, want string) string {
	r, a, b := f.r, f.r.l.A, f.r.l.B
	r.t.Helper()
	if want == gone {
		r.eventually("nobody to run the tree", func() bool { return f.running(a)+f.running(b) == "" })
		r.clean()
		return gone
	}
	from, _ := f.w.last()
	on, polls := "", 0
	r.eventually("the tree to make steps again", func() bool {
		n, now := f.w.last()
		on = now
		if polls++; polls%64 == 0 && f.running(a)+f.running(b) == "" {
			r.t.Fatalf("the tree is dead; migrate ended with %d: %s", m.code, m.stderr)
		}
		return n > from+20 || f.w.broken()
	})
	if want != either && on != want {
		r.t.Errorf("the tree runs on %s, not on %s; migrate ended with %d: %s", on, want, m.code, m.stderr)
	}
	if m.code == 0 && on != onB || m.code == 4 && on != onA {
		r.t.Errorf("migrate ended with %d, but the tree runs on %s: %s", m.code, on, m.stderr)
	}
	f.verdict(on)
	return on
}

// running are the processes of the tree on a host.
func (f *faulty) running(h *lab.Host) string { f.r.t.Helper(); return f.sh(h, "pgrep -x steps; true") }

// verdict ends the program and demands that it saw nothing wrong, that its journal has each line once, and that nothing is left.
func (f *faulty) verdict(on string) {
	r := f.r
	r.t.Helper()
	h := r.l.A
	if on == onB {
		h = r.l.B
	}
	pid := r.pid(h)
	r.sh(h, fmt.Sprint("kill -TERM ", pid))
	var lines uint64
	polls := 0
	r.eventually("the tree's last word", func() (ok bool) {
		if lines, ok = f.w.lastWord(); ok || f.w.broken() {
			return true
		}
		if polls++; polls%64 == 0 && f.running(h) == "" {
			if _, said := f.w.lastWord(); !said {
				r.t.Fatal("the tree died without its last word")
			}
		}
		return false
	})
	r.eventually("end of the tree", func() bool { return r.sh(h, fmt.Sprintf("test -d /proc/%d && echo there || echo gone", pid)) == "gone" })
	places := []string{r.l.A.Path("/srv/j/journal")}
	if on == onB {
		more, _ := filepath.Glob(r.l.B.Path("/var/lib/lazymig/*.target/root/srv/j/journal")) // the pattern is good
		places = append(places, more...)
	}
	if f.x.streams {
		places = []string{r.l.A.Path("/srv/out")} // what was on its way when the tree ended still comes
		r.eventually("all that the tree wrote, once and in order", func() bool { return numbered(places[0], lines) == nil })
	}
	var errs error
	for _, p := range places {
		err := numbered(p, lines)
		if err == nil {
			errs = nil
			break
		}
		errs = errors.Join(errs, err)
	}
	if errs != nil {
		r.t.Error(errs)
	}
	r.clean()
}

// numbered says whether a file has the lines 1 to n, each once.
func numbered(path string, n uint64) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	all := strings.SplitAfter(strings.TrimSuffix(string(b), "\n"), "\n")
	for i, l := range all {
		if strings.TrimSuffix(l, "\n") != strconv.Itoa(i+1) {
			return fmt.Errorf("%s: line %d of %d is %q", path, i+1, len(all), l)
		}
	}
	if uint64(len(all)) != n {
		return fmt.Errorf("%s: %d lines, %d were written", path, len(all), n)
	}
	return nil
}

// scarce leaves the tree next to no memory, plenty takes that back: a control group of its own, of cgroup v1, where nobody is killed for it.
func (f *faulty) scarce() {
	f.sh(f.r.l.B, "mkdir "+f.scarceDir()+" && cd "+f.scarceDir()+" && echo 1 >memory.oom_control && echo 4M >memory.limit_in_bytes && for p in $(pgrep -x steps); do echo $p >cgroup.procs; done")
}

func (f *faulty) plenty() {
	f.sh(f.r.l.B, "cd "+f.scarceDir()+" && echo -1 >memory.limit_in_bytes && for p in $(cat cgroup.procs); do echo $p >../cgroup.procs; done; cd ..; rmdir "+f.scarceDir())
}

func (f *faulty) scarceDir() string {
	return fmt.Sprint("/sys/fs/cgroup/memory/lazymig-scarce-", f.r.l.B.Pid)
}

// pid is of the program that moves, on h.
func (r *rig) pid(h *lab.Host) (pid int) {
	r.t.Helper()
	if _, err := fmt.Sscan(r.sh(h, "pgrep -x -n steps; true"), &pid); err != nil {
		r.t.Fatalf("no program on %s", h.Name)
	}
	return pid
}
