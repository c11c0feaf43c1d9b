package dump

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == KeeperArg {
		os.Exit(KeeperMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "dump-and-die" {
		os.Exit(dumpAndDie(os.Args[2:]))
	}
	kerneltest.Main(m)
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func need(t *testing.T) {
	t.Helper()
	kerneltest.Leaks(t)
	kerneltest.Need(t, kerneltest.Root, kerneltest.CRIU, kerneltest.CgroupFreezer, kerneltest.GCC)
}

func options(t *testing.T, c *checker) Options {
	return Options{PID: c.pid, ID: wire.NewID(), Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

func prepare(t *testing.T, o Options) *Dump {
	t.Helper()
	d, err := Prepare(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

func TestFreezeAndAbort(t *testing.T) {
	need(t)
	c := startChecker(t, 64, 4, 2, nil)
	before := c.cgroups()
	for i := range 5 {
		o := options(t, c)
		d := prepare(t, o)
		r, err := d.Freeze(testContext(t))
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		t.Logf("round %d: %.1f ms, %d tasks, %d threads, %d early pages, %d MB, unhidden %q", i, r.DumpMS, len(r.Tasks), r.Threads, len(r.Early), r.MemoryBytes>>20, r.Unhidden)
		checkImages(t, c, r)
		if err := d.Abort(); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		c.runs()
		c.clean(before, o.ID)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// checkImages holds the images and the result against /proc of the frozen tree.
func checkImages(t *testing.T, c *checker, r *Result) {
	t.Helper()
	if r.Unhidden != "" {
		t.Errorf("nothing was hidden: %s", r.Unhidden)
	}
	if err := images.Validate(r.ImagesDir); err != nil {
		t.Error(err)
	}
	if !slices.Contains(r.Zombies, uint32(c.word(wordZombie))) {
		t.Errorf("zombie %d is not among %v", c.word(wordZombie), r.Zombies)
	}
	for _, task := range r.Tasks {
		s, err := takeSnapshot(nil, task.PID)
		if err != nil {
			t.Fatal(err)
		}
		vmas, err := images.VMAs(r.ImagesDir, task.ID)
		if err != nil {
			t.Fatal(err)
		}
		byStart := map[uint64]images.VMA{}
		for _, v := range vmas {
			byStart[v.Start] = v
		}
		regions := map[uint64]Region{}
		for _, g := range task.Regions {
			regions[g.Start] = g
		}
		for _, m := range s.mappings {
			if m.name == "[vsyscall]" || strings.HasPrefix(m.name, "[vvar") {
				continue // CRIU merges the two vvar mappings
			}
			v, ok := byStart[m.start]
			if !ok || v.End != m.end || v.Prot != m.prot {
				t.Errorf("task %d: mapping %#x-%#x %s is %+v in the images", task.ID, m.start, m.end, m.name, v)
				continue
			}
			_, isRegion := regions[m.start]
			if want := m.hidable() || m.name == "[stack]"; want != isRegion {
				t.Errorf("task %d: mapping %#x-%#x %s: region %v, want %v", task.ID, m.start, m.end, m.name, isRegion, want)
			}
			if isRegion && regions[m.start].WipeOnFork != m.has("wf") {
				t.Errorf("task %d: mapping %#x: wipe on fork is %v", task.ID, m.start, regions[m.start].WipeOnFork)
			}
		}
	}
	root := r.Tasks[slices.IndexFunc(r.Tasks, func(x Task) bool { return x.PID == c.pid })]
	for addr, want := range map[uint64]bool{c.word(wordReserved): true, c.word(wordSparse): false, c.word(wordBase): false} {
		i := slices.IndexFunc(root.Regions, func(g Region) bool { return g.Start <= addr && addr < g.End })
		if i < 0 || root.Regions[i].Empty != want {
			t.Errorf("region of %#x: number %d, empty %v", addr, i, !want)
		}
	}
	if len(r.Early) == 0 {
		t.Error("no early pages")
	}
	for _, p := range r.Early {
		i := slices.IndexFunc(r.Tasks, func(x Task) bool { return x.ID == p.Task })
		if i < 0 || p.Addr%pageSize != 0 || len(p.Data) != pageSize {
			t.Errorf("early page %#x of task %d with %d bytes", p.Addr, p.Task, len(p.Data))
		}
	}
}

// TestNothingRunsAfterTheDump reads a counter in the tree's memory when CRIU has let go and a while of dump work later.
func TestNothingRunsAfterTheDump(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 8, 4, nil)
	o := options(t, c)
	var atDump uint64
	o.hooks.script = func(script string, _ int) {
		if script == "post-dump" { // every task is seized: what it counts cannot change
			atDump = c.word(wordTicks)
		}
	}
	d := prepare(t, o)
	if _, err := d.Freeze(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if now := c.word(wordTicks); now != atDump {
		t.Errorf("the tree has counted from %d to %d after it was dumped", atDump, now)
	}
	if err := d.Granted(); err != nil {
		t.Fatal(err)
	}
	// Neither a SIGCONT nor a thaw wakes it alone.
	for pid := range c.cgroups() {
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.KillTree(); err != nil {
		t.Fatal(err)
	}
	if now := c.word(wordTicks); now != atDump {
		t.Errorf("the tree has counted from %d to %d after the grant", atDump, now)
	}
	if err := d.Abort(); !errors.Is(err, ErrState) {
		t.Errorf("abort after the kill: %v", err)
	}
}

// TestThawAfterGrant: with the freezer lost, the pending SIGSTOP holds.
func TestThawAfterGrant(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 4, 1, nil)
	d := prepare(t, options(t, c))
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	ticks := c.word(wordTicks)
	if err := d.Granted(); err != nil {
		t.Fatal(err)
	}
	if err := d.h.thaw(r.Cgroup); err != nil {
		t.Fatal(err)
	}
	for _, task := range r.Tasks {
		kerneltest.Eventually(t, "task is stopped", func() bool {
			state, _, err := readStat(task.PID)
			return err == nil && state == 'T'
		})
	}
	if now := c.word(wordTicks); now != ticks {
		t.Errorf("the tree has counted from %d to %d", ticks, now)
	}
	if err := d.KillTree(); err != nil {
		t.Fatal(err)
	}
}

func TestAbortWhilePrepared(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 2, 2, nil)
	before := c.cgroups()
	o := options(t, c)
	d := prepare(t, o)
	c.runs() // Prepare does not stop it
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	c.runs()
	c.clean(before, o.ID)
}

// TestChangedMaps maps memory between the snapshot and the freeze.
func TestChangedMaps(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 2, 1, nil)
	d := prepare(t, options(t, c))
	c.set(wordChurn, 1)
	kerneltest.Eventually(t, "memory is mapped", func() bool { return c.word(wordChurned) != 0 })
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if r.Again != 1 {
		t.Errorf("%d snapshots taken again", r.Again)
	}
	addr := c.word(wordChurned)
	for _, task := range r.Tasks {
		if task.PID == c.pid && !slices.ContainsFunc(task.Regions, func(g Region) bool { return g.Start <= addr && addr < g.End }) {
			t.Errorf("the new mapping at %#x is in no region", addr)
		}
	}
	checkImages(t, c, r)
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	c.runs()
}

func TestOwnNamespaces(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 2, 1, &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	})
	before := c.cgroups()
	o := options(t, c)
	d := prepare(t, o)
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	checkImages(t, c, r)
	if _, err := os.Stat(filepath.Join(r.ImagesDir, "mountpoints-1.img")); err == nil {
		t.Error("CRIU has dumped the mount namespace")
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	c.runs()
	c.clean(before, o.ID)
}

// TestKilledCRIU kills criu at each step.
func TestKilledCRIU(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 4, 2, nil)
	before := c.cgroups()
	kill := func(pid int) { _ = unix.Kill(pid, unix.SIGKILL) }
	for _, step := range []string{"held", "query-ext-files", "post-dump"} {
		t.Run(step, func(t *testing.T) {
			o := options(t, c)
			if step == "held" {
				o.hooks.beforeAck = kill
			}
			o.hooks.script = func(script string, pid int) {
				if script == step {
					kill(pid)
				}
			}
			d := prepare(t, o)
			if _, err := d.Freeze(testContext(t)); err == nil {
				t.Fatal("no error")
			}
			c.runs()
			c.clean(before, o.ID)
		})
	}
}

// TestFlagsChange: a mapping is wiped on fork after the snapshot, which maps does not show. The checker cannot be asked
// to do that in the window, so the snapshot is changed instead. Without BPF there is no grant; with it the freeze sees it.
func TestFlagsChange(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 1, 0, nil)
	before := c.cgroups()
	for _, noBPF := range []bool{true, false} {
		o := options(t, c)
		o.hooks.noBPF = noBPF
		d := prepare(t, o)
		if !noBPF && d.flags == nil {
			t.Log("no BPF iterator here")
			continue
		}
		s := d.snaps[c.pid]
		for i := range s.mappings {
			if s.mappings[i].has("wf") {
				s.mappings[i].flags = slices.DeleteFunc(s.mappings[i].flags, func(f string) bool { return f == "wf" })
				if !noBPF {
					s.flags[i].flags ^= 1
				}
			}
		}
		r, err := d.Freeze(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		err = d.Check()
		if noBPF && !errors.Is(err, ErrChanged) {
			t.Errorf("without BPF: %v", err)
		}
		if !noBPF {
			if err != nil || r.Again != 1 {
				t.Errorf("with BPF: %v, %d snapshots again", err, r.Again)
			}
			checkImages(t, c, r)
		}
		if err := d.Abort(); err != nil {
			t.Fatal(err)
		}
		c.runs()
		c.clean(before, o.ID)
	}
}

func TestGoneProcess(t *testing.T) {
	need(t)
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	_ = cmd.Wait()
	if _, err := Prepare(testContext(t), Options{PID: pid, ID: wire.NewID()}); err == nil {
		t.Error("no error")
	}
}

// TestThawedByOthers: no grant for a tree that somebody has thawed.
func TestThawedByOthers(t *testing.T) {
	need(t)
	c := startChecker(t, 8, 1, 0, nil)
	d := prepare(t, options(t, c))
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.h.thaw(r.Cgroup); err != nil {
		t.Fatal(err)
	}
	if err := d.Granted(); !errors.Is(err, ErrNotStopped) {
		t.Errorf("granted: %v", err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	c.runs()
}
