// Package e2e moves real processes between the two hosts of a lab, by the commands that a user types, and looks at every byte.
package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/lab"
	"github.com/lazymig/lazymig/migrate"
)

// patience ends a hang; it measures nothing.
const patience = 5 * time.Minute

const agentPort = "7070"

// agentArgs names the variable whose words each agent gets as arguments, to run all tests with an option that is not the default.
const agentArgs = "LAZYMIG_E2E_AGENT"

func TestMain(m *testing.M) {
	lab.MaybeInit()
	closeStray()
	kerneltest.Main(m)
}

// closeStray keeps descriptors that this process inherited from reaching trees: they would count as held outside.
func closeStray() {
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range ents {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 2 {
			unix.CloseOnExec(n)
		}
	}
}

// rig is a lab with an agent on each host.
type rig struct {
	t         *testing.T
	ctx       context.Context
	l         *lab.Lab
	lazymig   string
	keys      string
	dir       string // of test programs, seen on both hosts
	agents    map[*lab.Host]*agent
	sourceEnv []string // of lazymig migrate, for package park
	enter     []string // what runs lazymig migrate where it must run
	via       string   // where agents are reached, if not where they are
	last      *moved   // what the last move told
}

type agent struct {
	cmd *exec.Cmd
	log *logBuffer
}

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var built = sync.OnceValues(func() (string, error) {
	root, err := repoRoot()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "bin", "lazymig")
	cmd := exec.Command("go", append(strings.Fields("build -trimpath "+os.Getenv("LAZYMIG_BUILDFLAGS")), "-o", bin, "./cmd/lazymig")...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lazymig: %w\n%s", err, out)
	}
	return bin, nil
})

func repoRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	return filepath.Dir(wd), nil
}

// newRig makes the hosts, with an agent on B; programs are C sources below testdata that will be there as r.dir/NAME.
func newRig(t *testing.T, programs ...string) *rig {
	t.Helper()
	r := newHosts(t, programs...)
	r.agent(r.l.B)
	return r
}

// newHosts is newRig without an agent.
func newHosts(t *testing.T, programs ...string) *rig {
	t.Helper()
	kerneltest.Leaks(t)
	return makeHosts(t, programs...)
}

// makeHosts is newHosts for several tests at once, which look for leaks together.
func makeHosts(t *testing.T, programs ...string) *rig {
	t.Helper()
	kerneltest.Need(t, kerneltest.Root, kerneltest.Userfaultfd, kerneltest.FUSE, kerneltest.CgroupFreezer, kerneltest.CRIU, kerneltest.TimeNS)
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	root, err := repoRoot()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	r := &rig{t: t, ctx: ctx, lazymig: bin, agents: map[*lab.Host]*agent{}}
	if r.dir, err = os.MkdirTemp(filepath.Join(root, "bin"), ".e2e-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(r.dir) })
	for _, p := range programs {
		src, err := os.ReadFile(filepath.Join("testdata", p+".c"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(kerneltest.CompileC(t, string(src), "-pthread"))
		if err == nil {
			err = os.WriteFile(filepath.Join(r.dir, p), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r.keys = filepath.Join(r.dir, "keys")
	if r.l, err = lab.Up(ctx, lab.Options{Share: append(lab.ProjectShare(root), filepath.Join(root, "bin"))}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.l.Down(); err != nil {
			t.Errorf("take lab down: %v", err)
		}
	})
	t.Cleanup(func() {
		logs, _ := filepath.Glob(r.l.A.Path("/var/lib/lazymig/*.log")) // the pattern is good
		for _, f := range logs {
			b, err := os.ReadFile(f)
			if err == nil && t.Failed() {
				t.Logf("%s on A:\n%s", filepath.Base(f), tail(string(b), 60))
			}
			noRefusal(t, filepath.Base(f), string(b))
		}
	})
	if err := errors.Join(keys.Init(r.keys), keys.Host(r.keys, r.l.A.Addr, r.l.B.Addr)); err != nil {
		t.Fatal(err)
	}
	return r
}

// loud makes a system call that a filter of lazymig's own refuses end its process, with an account in the log that noRefusal looks for.
const loud = confine.LoudEnv + "=1"

func noRefusal(t *testing.T, whose, log string) {
	t.Helper()
	if _, after, ok := strings.Cut(log, "SIGSYS"); ok {
		t.Errorf("a system call was refused, log of %s: %.3000s", whose, after)
	}
}

// agent starts one on h and waits until it listens.
func (r *rig) agent(h *lab.Host, args ...string) *agent {
	r.t.Helper()
	return r.agentWith(h, nil, args...)
}

// agentWith adds to the agent's environment.
func (r *rig) agentWith(h *lab.Host, env []string, args ...string) *agent {
	r.t.Helper()
	a := &agent{log: &logBuffer{}}
	args = append([]string{"agent", "--listen", h.Addr + ":" + agentPort, "--tls-dir", r.keys}, args...)
	args = append(args, strings.Fields(os.Getenv(agentArgs))...)
	a.cmd = h.Command(context.Background(), r.lazymig, args...)
	a.cmd.Env = append(append(lab.Env(), loud), env...)
	logEnd, stderr, err := os.Pipe() // a capsule outlives its agent, and goes on writing
	if err != nil {
		r.t.Fatal(err)
	}
	a.cmd.Stderr = stderr
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	err = a.cmd.Start()
	stderr.Close()
	go func() {
		_, _ = io.Copy(a.log, logEnd) // up to the end of the last one
		logEnd.Close()
	}()
	if err != nil {
		r.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "listens") {
		r.t.Fatalf("agent says %q, %v\n%s", line, err, a.log)
	}
	r.agents[h] = a
	r.t.Cleanup(func() {
		_ = a.cmd.Process.Signal(syscall.SIGTERM)
		_ = a.cmd.Wait() // it may have been killed by the test
		noRefusal(r.t, "agent", a.log.String())
		if r.t.Failed() {
			r.t.Logf("agent on %s:\n%s", h.Name, tail(a.log.String(), 60))
		}
	})
	return a
}

func tail(s string, n int) string {
	lines := strings.SplitAfter(s, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// spawn starts a program in h without any descriptor from outside.
func (r *rig) spawn(h *lab.Host, args ...string) *lab.Proc {
	r.t.Helper()
	p, err := h.Spawn(lab.Spawn{Args: args})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { p.Close() })
	return p
}

// sh runs a script in h and returns what it prints.
func (r *rig) sh(h *lab.Host, script string) string {
	r.t.Helper()
	out, err := h.Command(r.ctx, "/bin/sh", "-c", script).CombinedOutput()
	if err != nil {
		r.t.Fatalf("on %s: %s: %v\n%s", h.Name, script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// eventually waits until f says yes.
func (r *rig) eventually(what string, f func() bool) {
	r.t.Helper()
	kerneltest.Eventually(r.t, what, f)
}

// moved is what a migration's events said.
type moved struct {
	events []migrate.Event
	code   int
	stderr string
}

// get is the first event of a kind.
func (m *moved) get(kind string) *migrate.Event {
	for i := range m.events {
		if m.events[i].Event == kind {
			return &m.events[i]
		}
	}
	return nil
}

// fewTrips checks that the restore did not go to the source for each name and page of the tree's files, which would be a hundred times and more. It is 0 to 5
// mostly; on a very busy machine not all pages may have been fetched ahead.
func (m *moved) fewTrips(t *testing.T) {
	t.Helper()
	if e := m.get("resumed"); e == nil || e.FileTrips > 40 {
		t.Errorf("the restore went to the source for files too often: %+v", e)
	}
}

// migration is a `lazymig migrate` that is under way.
type migration struct {
	r           *rig
	cmd         *exec.Cmd
	out, errOut logBuffer
}

// begin starts `lazymig migrate` on from.
func (r *rig) begin(from, to *lab.Host, pid int, args ...string) *migration {
	r.t.Helper()
	args = append([]string{"migrate", "--json", "--pid", strconv.Itoa(pid), "--to", cmp.Or(r.via, to.Addr+":"+agentPort), "--tls-dir", r.keys}, args...)
	if !slices.Contains(args, "--until") {
		args = append(args, "--until", "drained")
	}
	args = append(append(slices.Clone(r.enter), r.lazymig), args...)
	g := &migration{r: r, cmd: from.Command(r.ctx, args[0], args[1:]...)}
	g.cmd.Env = append(append(lab.Env(), loud), r.sourceEnv...)
	g.cmd.Stdout, g.cmd.Stderr = &g.out, &g.errOut
	if err := g.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if s := g.errOut.String(); s != "" && r.t.Failed() {
			r.t.Logf("migrate: %s", s)
		}
	})
	return g
}

// try is begin and wait.
func (r *rig) try(from, to *lab.Host, pid int, args ...string) *moved {
	r.t.Helper()
	return r.begin(from, to, pid, args...).wait()
}

// wait waits for the command's end.
func (g *migration) wait() *moved {
	r := g.r
	r.t.Helper()
	err := g.cmd.Wait()
	m := &moved{stderr: g.errOut.String()}
	var ee *exec.ExitError
	switch {
	case errors.As(err, &ee):
		m.code = ee.ExitCode()
	case err != nil:
		r.t.Fatal(err)
	}
	for line := range strings.Lines(g.out.String()) {
		var e migrate.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			r.t.Fatalf("event %q: %v", line, err)
		}
		m.events = append(m.events, e)
	}
	return m
}

// move runs a migration that must work, and returns the PID of the root task on the target.
func (r *rig) move(from, to *lab.Host, pid int, args ...string) (int, *moved) {
	r.t.Helper()
	m := r.try(from, to, pid, args...)
	r.last = m
	if m.code != 0 {
		logs, _ := from.Command(r.ctx, "/bin/sh", "-c", "tail -n 40 /var/lib/lazymig/*.log").CombinedOutput()
		r.t.Fatalf("migrate ended with %d: %s\nsource's log:\n%s", m.code, m.stderr, logs)
	}
	e := m.get("resumed")
	if e == nil {
		r.t.Fatalf("no resumed event among %v", m.events)
	}
	if d := m.get("done"); d != nil {
		r.t.Logf("%d round trips for files and %d for pages in the restore", d.FileTrips, d.PageTrips)
		r.t.Logf("down %.1f ms (dump %.1f, transfer %.1f, restore %.1f, grant %.1f), drain %.0f ms, %d faults, p50 %.0f µs, p99 %.0f µs, %d MB",
			d.DowntimeMS, d.DumpMS, d.TransferMS, d.RestoreMS, d.GrantMS, d.DrainMS, d.Faults, d.FaultP50US, d.FaultP99US, d.MemoryBytes>>20)
	}
	return e.TargetPID, m
}

// end signals the moved tree and waits for the wait status that its end gives, as the records tell.
func (r *rig) end(on *lab.Host, pid int, sig string) {
	r.t.Helper()
	r.sh(on, fmt.Sprintf("kill -%s %d", sig, pid))
	r.eventually("end of the tree", func() bool {
		return r.sh(on, fmt.Sprintf("test -d /proc/%d && echo there || echo gone", pid)) == "gone"
	})
}

// clean checks that nothing of lazymig but agents and records is left.
func (r *rig) clean() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, kerneltest.Patience)
	defer cancel()
	left, err := r.l.Remains(ctx)
	if err != nil || left != "" {
		r.t.Errorf("left behind: %v\n%s", err, left)
	}
}

// states are the last states of all records on a host: "source drained".
func (r *rig) states(h *lab.Host) []string {
	r.t.Helper()
	out, err := h.Command(r.ctx, r.lazymig, "list", "--json").Output()
	if err != nil {
		r.t.Fatalf("list on %s: %v", h.Name, err)
	}
	var all []string
	for line := range bytes.Lines(out) {
		var s struct{ Side, State string }
		if err := json.Unmarshal(line, &s); err != nil {
			r.t.Fatal(err)
		}
		all = append(all, s.Side+" "+s.State)
	}
	return all
}
