package e2e

import (
	"errors"
	"fmt"
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
// should not. `make test-faults` walks all pairs, `make test` those of few.

// few are what `make test` has time for: each promise once.
var few = map[string]string{
	"dump/kill source":             "",
	"asked/kill handler":           "",
	"granted/kill CRIU":            "",
	"grant/kill agent":             "",
	"granted/A's messages lost":    "",
	"letgo/kill source":            "",
	"drain/kill FUSE daemon":       "",
	"drain/kill guardian":          "",
	"drain/no memory for the tree": "",
	"switched/reset":               "",
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
	noStreams    bool
}

// results are how cases ended.
type results struct {
	mu    sync.Mutex
	lines []string
	ends  map[string]int
}

func (s *results) add(p point, x fault, end string, pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends[end]++
	s.lines = append(s.lines, fmt.Sprintf("%2d %-9s %-40s %-6s %6d ms", slices.IndexFunc(points, func(q point) bool { return q == p }), p.name, x.name, end, pause.Milliseconds()))
}

func TestFaults(t *testing.T) {
	all := os.Getenv("LAZYMIG_FAULTS") == "all"
	kerneltest.Leaks(t)
	s := &results{ends: map[string]int{}}
	t.Cleanup(func() {
		slices.Sort(s.lines)
		n := 0
		for _, k := range s.ends {
			n += k
		}
		t.Logf("%d cases ran and ended well: %d on A, %d on B, %d gone on purpose, %d lost\n   point     fault%35s ends on  longest pause of its steps\n%s",
			n, s.ends[onA], s.ends[onB], s.ends[gone], s.ends[frozen], "", strings.Join(s.lines, "\n"))
	})
	t.Run("cases", func(t *testing.T) {
		for _, p := range points {
			for _, x := range faults {
				name := p.name + "/" + x.name
				if _, ok := few[name]; !all && !ok || x.at != nil && !slices.Contains(x.at, p.name) {
					continue
				}
				t.Run(strings.ReplaceAll(name, "/", ":"), func(t *testing.T) {
					if all {
						t.Parallel() // hosts of their own, which wait most of the time
					}
					oneFault(t, p, x, s)
				})
			}
		}
	})
}

// oneFault runs one case.
func oneFault(t *testing.T, p point, x fault, s *results) {
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
	if slices.Contains(between("files", "switched"), p.name) {
		args = append(r.locals(a, b), "--until", "detached")
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
	if !t.Failed() {
		s.add(p, x, end, f.w.longest())
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
	switch want {
	case gone:
		r.eventually("nobody to run the tree", func() bool { return r.sh(b, "pgrep -x steps; true") == "" && r.sh(a, "pgrep -x steps; true") == "" })
		r.clean()
		return gone
	case frozen:
		n, on := f.w.last()
		if m.code != 5 || on != onA || r.sh(b, "pgrep -x steps; true") != "" {
			r.t.Errorf("migrate ended with %d, last step on %s: %s", m.code, on, m.stderr)
		}
		if k, _ := f.w.last(); k != n {
			r.t.Errorf("it runs: step %d after %d", k, n)
		}
		return frozen
	}
	from, _ := f.w.last()
	on := ""
	r.eventually("the tree to make steps again", func() bool {
		n, now := f.w.last()
		on = now
		return n > from+20
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

// verdict ends the program and demands that it saw nothing wrong, that its journal has each line once, and that nothing is left.
func (f *faulty) verdict(on string) {
	r := f.r
	r.t.Helper()
	h := r.l.A
	if on == onB {
		h = r.l.B
	}
	pid := r.pid(h)
	if f.noStreams && on == onB { // it waits for its output to be taken, for ever
		r.end(h, pid, "KILL")
		r.clean()
		return
	}
	r.sh(h, fmt.Sprint("kill -TERM ", pid))
	var lines uint64
	r.eventually("the tree's last word", func() (ok bool) { lines, ok = f.w.lastWord(); return ok })
	r.eventually("end of the tree", func() bool { return r.sh(h, fmt.Sprintf("test -d /proc/%d && echo there || echo gone", pid)) == "gone" })
	places := []string{r.l.A.Path("/srv/j/journal")}
	if on == onB {
		more, _ := filepath.Glob(r.l.B.Path("/var/lib/lazymig/*.target/root/srv/j/journal")) // the pattern is good
		places = append(places, more...)
	}
	if f.x.streams {
		places = []string{r.l.A.Path("/srv/out")}
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
