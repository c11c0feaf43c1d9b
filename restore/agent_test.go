package restore

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/restore/memory"
	"github.com/lazymig/lazymig/wire"
)

// agentArg makes this test's program an agent that restores eagerly, so that it can be killed.
const agentArg = "test-agent"

type agentConfig struct {
	ID   wire.ID
	Dir  string
	PIDs []int32

	Outlive bool // before it says that the tree is held
}

// agentMain holds a restore, and lets go when its standard input says so.
func agentMain(arg string) error {
	var cfg agentConfig
	if err := json.Unmarshal([]byte(arg), &cfg); err != nil {
		return err
	}
	c, err := Start(context.Background(), Options{ID: cfg.ID, Dir: cfg.Dir, ImagesDir: cfg.Dir, BindRoot: "/", PIDs: cfg.PIDs})
	if err != nil {
		return err
	}
	if err := c.Restore(context.Background(), RestoreOptions{NotLazy: true}); err != nil {
		return err
	}
	if cfg.Outlive {
		if err := c.Outlive(context.Background()); err != nil {
			return err
		}
	}
	fmt.Println("held", c.PID(), c.groups.top)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if _, err := c.Release(context.Background()); err != nil {
		return err
	}
	fmt.Println("released")
	select {} // until killed
}

// An agent that is killed takes a held capsule with it, but not one that may outlive it, or runs: that the next agent takes over.
func TestAgentKilled(t *testing.T) {
	for _, how := range []string{"held", "asked", "released"} {
		release := how == "released"
		t.Run(how, func(t *testing.T) {
			kerneltest.Leaks(t)
			kerneltest.NeedRoot(t)
			tr := startTree(t, 4)
			pids := tr.tids(t)
			dir := tr.dump(t)
			tr.kill()
			before := tr.counters()
			id := wire.NewID()
			arg, err := json.Marshal(agentConfig{ID: id, Dir: dir, PIDs: pids, Outlive: how == "asked"})
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe", agentArg, string(arg))
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			lines := bufio.NewReader(out)
			line, err := lines.ReadString('\n')
			var pid int
			var top string
			if _, serr := fmt.Sscanf(line, "held %d %s", &pid, &top); serr != nil {
				t.Fatal(line, err, serr)
			}
			g := &cgroups{top: top}
			defer func() {
				ctx, cancel := context.WithTimeout(context.Background(), kerneltest.Patience)
				defer cancel()
				if err := errors.Join(g.kill(ctx, treeGroup, nil), g.kill(ctx, guardianGroup, nil), g.remove()); err != nil {
					t.Error(err)
				}
			}()
			if release {
				fmt.Fprintln(in)
				if line, err := lines.ReadString('\n'); strings.TrimSpace(line) != "released" {
					t.Fatal(line, err)
				}
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if how != "held" {
				adopted(t, tr, Options{ID: id, Dir: dir}, release)
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), kerneltest.Patience)
			defer cancel()
			if err := errors.Join(waitEmpty(ctx, g.dir(guardianGroup)), waitEmpty(ctx, g.dir(treeGroup))); err != nil {
				t.Fatal("the held capsule lives on:", err)
			}
			if tr.counters() != before {
				t.Error("the held tree has run")
			}
		})
	}
}

// adopted takes a capsule over whose agent has been killed.
func adopted(t *testing.T, tr *tree, o Options, released bool) {
	t.Helper()
	if released {
		tr.running(t)
	}
	before := tr.counters()
	c, f, err := Adopt(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	if (f.Resumed != nil) != released || f.Drained != nil || f.Exited != nil {
		t.Errorf("found %+v", f)
	}
	if !released && tr.counters() != before {
		t.Error("the held tree has run")
	}
	r, err := c.Release(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if released && *f.Resumed != r {
		t.Errorf("resumed %+v, found %+v", r, *f.Resumed)
	}
	tr.running(t)
	tr.verify(t)
	tr.running(t)
}

func TestFixups(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := heldWith(t, startTree(t, 4), func(tr *tree, o *RestoreOptions) {
		o.Fixups = []Fixup{
			{TID: int32(tr.pid), Affinity: []uint64{1}, TimerSlackNS: 123456, IOPrio: 2<<13 | 5, KSM: true},
			{TID: int32(tr.child), Affinity: []uint64{0, 1 << 40}}, // CPUs that are not here
		}
	})
	e := event(t, l.c, EventProblem)
	if !strings.Contains(e.Text, "affinity") {
		t.Errorf("problem %q", e.Text)
	}
	r := l.release(t)
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(r.PID, &set); err != nil {
		t.Fatal(err)
	}
	if set.Count() != 1 || !set.IsSet(0) {
		t.Errorf("affinity %v", set)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", r.PID)); strings.TrimSpace(string(b)) != "123456" {
		t.Errorf("timer slack %q, %v", b, err)
	}
	if v, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, uintptr(r.PID), 0); v != 2<<13|5 {
		t.Errorf("I/O priority %#x, %v", v, errno)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/ksm_stat", r.PID)); err != nil || !strings.Contains(string(b), "ksm_merge_any: yes") {
		t.Errorf("KSM %q, %v", b, err)
	}
	l.running(t)
}

// What cannot be restored is an error with CRIU's words, and leaves nothing.
func TestRestoreFails(t *testing.T) {
	kerneltest.NeedRoot(t)
	for name, c := range map[string]struct {
		spoil func(t *testing.T, tr *tree, dir string, o *RestoreOptions)
		want  string
	}{
		"image missing": {func(t *testing.T, tr *tree, dir string, _ *RestoreOptions) {
			if err := os.Remove(filepath.Join(dir, fmt.Sprintf("core-%d.img", tr.child))); err != nil {
				t.Fatal(err)
			}
		}, "empty-image"},
		"image cut": {func(t *testing.T, _ *tree, dir string, _ *RestoreOptions) {
			if err := os.Truncate(filepath.Join(dir, "files.img"), 100); err != nil {
				t.Fatal(err)
			}
		}, "criu"},
		"file changed": {func(t *testing.T, tr *tree, _ string, _ *RestoreOptions) {
			if err := os.Truncate(filepath.Join(tr.dir, "shared"), 8192); err != nil {
				t.Fatal(err)
			}
		}, "bad size"},
		"no userfaultfd": {func(_ *testing.T, tr *tree, _ string, o *RestoreOptions) {
			o.Tasks = append(o.Tasks, o.Tasks[0])
			o.Tasks[len(o.Tasks)-1].ID = 77
		}, "task 77"},
		"memory without": {func(_ *testing.T, _ *tree, _ string, o *RestoreOptions) {
			last := &o.Tasks[0].Regions
			r := (*last)[0]
			r.Start, r.End = 0x10000, 0x11000
			*last = append((*last)[:0:0], append([]memory.Region{r}, *last...)...)
		}, "without a userfaultfd"},
	} {
		t.Run(name, func(t *testing.T) {
			kerneltest.Leaks(t)
			tr := startTree(t, 4)
			pids := tr.tids(t)
			dir, o := tr.freeze(t)
			before := tr.counters()
			c.spoil(t, tr, dir, &o)
			cp := startCapsule(t, Options{ImagesDir: dir, PIDs: pids})
			s := startSource(t, tr, cp.o.ID)
			s.attach(t, cp)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			err := cp.Restore(ctx, o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("restore says %v, want something about %q", err, c.want)
			}
			if _, err := cp.Release(ctx); err == nil {
				t.Error("a tree was released that is not there")
			}
			if err := cp.Close(); err != nil {
				t.Error(err)
			}
			if tr.counters() != before {
				t.Error("the tree has run")
			}
			if err := tr.d.Abort(); err != nil {
				t.Error(err)
			}
			tr.running(t)
		})
	}
}

// Limits are set on the tree's cgroup, or it is told that they cannot be.
func TestLimits(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	c := startCapsule(t, Options{ImagesDir: imagesDir(t), PidsMax: "77", MemoryMax: "max"})
	b, err := os.ReadFile(filepath.Join(c.groups.dir(treeGroup), "pids.max"))
	if err == nil {
		if strings.TrimSpace(string(b)) != "77" {
			t.Errorf("pids.max is %q", b)
		}
		return
	}
	if e := event(t, c, EventProblem); !strings.Contains(e.Text, "pids.max=77") {
		t.Errorf("problem %q", e.Text)
	}
}

// What is written where the kernel has all controllers: on most test machines some belong to cgroup v1, so a directory stands in.
func TestLimitFiles(t *testing.T) {
	g := &cgroups{top: t.TempDir()}
	if err := os.Mkdir(g.dir(treeGroup), 0o755); err != nil {
		t.Fatal(err)
	}
	g.limit(Limits{MemoryMax: "1073741824", CPUMax: "50000 100000", PidsMax: "77"})
	for file, want := range map[string]string{"memory.max": "1073741824", "cpu.max": "50000 100000", "pids.max": "77"} {
		if b, err := os.ReadFile(filepath.Join(g.dir(treeGroup), file)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", file, b, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(g.top, "cgroup.subtree_control")); err != nil || string(b) != "+pids" { // the last one
		t.Errorf("controllers: %q, %v", b, err)
	}
	if len(g.unset) > 0 {
		t.Errorf("told: %q", g.unset)
	}
	g = &cgroups{top: g.dir("none")}
	g.limit(Limits{MemoryMax: "1", CPUMax: "max", PidsMax: ""})
	if len(g.unset) != 1 || !strings.HasPrefix(g.unset[0], "memory.max=1: ") {
		t.Errorf("told without a controller: %q", g.unset)
	}
}

// Where something is mounted over cgroup v2 the capsule's cgroups are reached by a mount that nobody sees.
func TestCoveredCgroup2(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	point, _, err := cgroupMount()
	if err != nil || point == "" {
		t.Fatalf("cgroup v2 is at %q: %v", point, err)
	}
	if err := unix.Mount("none", point, "tmpfs", 0, ""); err != nil { // package kerneltest gives the tests a mount namespace
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Error(err)
		}
	}()
	g, err := makeCgroups(Here{}, "lazymig-0000c0de-dst", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if g.mount == nil {
		t.Error("no mount of its own")
	}
	fd, err := os.Open(g.dir(treeGroup))
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if err != nil || !strings.Contains(string(b), "lazymig-0000c0de-dst/"+treeGroup+"\n") {
		t.Errorf("the process is in %s, %v", b, err)
	}
	if err := g.kill(testContext(t), treeGroup, nil); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	if err := g.remove(); err != nil {
		t.Error(err)
	}
}

// A tree whose PIDs this host cannot have is refused with the remedy, and nothing is left.
func TestPIDsRefused(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	_, err := Start(testContext(t), Options{ID: wire.NewID(), ImagesDir: imagesDir(t), BindRoot: "/", PIDs: []int32{1, 2}, Log: testLog(t)})
	if err == nil || !strings.Contains(err.Error(), "PID 1") {
		t.Errorf("a tree with PID 1: %v", err)
	}
}

// What a capsule without an agent left is removed by the next one; what lives or is young stays.
func TestSweep(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	g, err := makeCgroups(Here{}, "lazymig-0000beef-dst", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.remove(); err != nil {
			t.Error(err)
		}
	}()
	parent := filepath.Dir(g.top)
	sweep(parent)
	if _, err := os.Stat(g.dir(treeGroup)); err != nil {
		t.Fatalf("a young one is gone: %v", err)
	}
	old := time.Now().Add(-2 * staleAfter)
	if err := os.Chtimes(g.top, old, old); err != nil {
		t.Fatal(err)
	}
	fd, err := os.Open(g.dir(guardianGroup))
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sweep(parent)
	_, err = os.Stat(g.dir(treeGroup))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatalf("one that lives is gone: %v", err)
	}
	kerneltest.Eventually(t, "it is gone", func() bool {
		sweep(parent)
		_, err := os.Stat(g.top)
		return errors.Is(err, os.ErrNotExist)
	})
}
