package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/dump"
	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/restore/memory"
	"github.com/lazymig/lazymig/wire"
)

// tree is testdata/tree.c running on the "source", and its mailbox.
type tree struct {
	cmd   *exec.Cmd
	dir   string
	mb    int
	box   []uint64
	pid   int // as the tree sees it
	child int
	host  [2]int // both as the test sees them
	ns    bool   // in a PID namespace of its own
	d     *dump.Dump
}

const (
	boxCommand = 32
	boxDone    = 33
	boxPages   = 34
	boxWrong   = 35
	boxHost    = 43
)

func startTree(t *testing.T, mb int) *tree { return startTreeIn(t, mb, false) }

// startTreeIn starts it in a PID namespace of its own if ns, where its PIDs are as low as can be: 2, 3, …
func startTreeIn(t *testing.T, mb int, ns bool) *tree {
	t.Helper()
	src, err := os.ReadFile("testdata/tree.c")
	if err != nil {
		t.Fatal(err)
	}
	tr := &tree{dir: t.TempDir(), mb: mb}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	exe := kerneltest.CompileC(t, string(src), "-pthread")
	tr.cmd = exec.Command(exe, tr.dir, strconv.Itoa(mb))
	tr.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if tr.ns = ns; ns {
		tr.cmd = exec.Command("sh", "-c", `mount -t proc proc /proc && { setsid "$0" "$@" </dev/null >/dev/null 2>&1 & wait; }`, exe, tr.dir, strconv.Itoa(mb))
		tr.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	}
	tr.cmd.Stdin, tr.cmd.Stdout, tr.cmd.Stderr = null, null, null
	f, err := os.OpenFile(filepath.Join(tr.dir, "shared"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	tr.box = unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), 512)
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.kill)
	kerneltest.Eventually(t, "the tree is ready", func() bool { return tr.get(42) == 1 })
	tr.pid, tr.child = int(tr.get(40)), int(tr.get(41))
	tr.host = [2]int{tr.pid, tr.child}
	if ns {
		tr.host[0] = childOf(t, tr.cmd.Process.Pid)
		tr.host[1] = childOf(t, tr.host[0])
	}
	return tr
}

func (tr *tree) get(i int) uint64    { return atomic.LoadUint64(&tr.box[i]) }
func (tr *tree) set(i int, v uint64) { atomic.StoreUint64(&tr.box[i], v) }

// kill may be called more than once.
func (tr *tree) kill() {
	if tr.cmd.ProcessState == nil {
		if !tr.ns {
			_ = syscall.Kill(-tr.cmd.Process.Pid, syscall.SIGKILL)
		}
		_ = tr.cmd.Process.Kill()
		_ = tr.cmd.Wait()
	}
}

func childOf(t *testing.T, pid int) (child int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &child); err != nil {
		t.Fatalf("children of %d: %q: %v", pid, b, err)
	}
	return child
}

func (tr *tree) counters() [5]uint64 {
	return [5]uint64{tr.get(0), tr.get(1), tr.get(2), tr.get(3), tr.get(8)}
}

// running waits until all threads have gone on.
func (tr *tree) running(t *testing.T) {
	t.Helper()
	was := tr.counters()
	kerneltest.Eventually(t, "all threads go on", func() bool {
		for i, n := range tr.counters() {
			if n == was[i] {
				return false
			}
		}
		return true
	})
}

// verify has each page compared by the tree itself, in both processes.
func (tr *tree) verify(t *testing.T) {
	t.Helper()
	tr.set(boxPages, 0)
	tr.set(boxDone, 0)
	tr.set(boxCommand, 1)
	kerneltest.Eventually(t, "all is verified", func() bool { return tr.get(boxDone) == 2 })
	if want := uint64(2*tr.mb+4) << 8; tr.get(boxPages) != want {
		t.Errorf("%d pages verified, want %d", tr.get(boxPages), want)
	}
	if n := tr.get(boxWrong); n != 0 {
		t.Errorf("%d wrong pages", n)
	}
}

// tids are those of all threads of the tree.
func (tr *tree) tids(t *testing.T) (ids []int32) {
	t.Helper()
	for _, pid := range tr.host {
		d, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range d {
			n, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, int32(inNamespace(t, n)))
		}
	}
	return ids
}

// inNamespace translates a thread's ID to its own PID namespace.
func inNamespace(t *testing.T, tid int) (n int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "NSpid:"); ok {
			w := strings.Fields(v)
			if n, err = strconv.Atoi(w[len(w)-1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// dump dumps the tree with stock CRIU and leaves it stopped.
func (tr *tree) dump(t *testing.T) (dir string) {
	t.Helper()
	dir = imagesDir(t)
	path, prefix, err := criu.Find("")
	if err != nil {
		kerneltest.Skip(t, "%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w, err := criu.Start(ctx, criu.Options{Path: path, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	skip := rpc.CriuNetworkLockMethod_SKIP
	o := &rpc.CriuOpts{
		Pid: new(int32(tr.pid)), ImagesDirFd: new(int32(-1)), ImagesDir: &dir, LeaveStopped: new(true), LogLevel: new(int32(1)),
		NetworkLock: &skip, ManageCgroups: new(false), ManageCgroupsMode: new(rpc.CriuCgMode_IGNORE),
	}
	if err := w.Dump(ctx, o, func(string, int32) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// freeze dumps it as a source does: flat, its memory left where it is.
func (tr *tree) freeze(t *testing.T) (dir string, o RestoreOptions) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	work := imagesDir(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d, err := dump.Prepare(ctx, dump.Options{PID: tr.host[0], WorkDir: work, ID: wire.NewID(), KeeperArgv: []string{exe, dump.KeeperArg}, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	tr.d = d
	r, err := d.Freeze(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range r.Tasks {
		m := memory.TaskMem{ID: task.ID}
		for _, g := range task.Regions {
			m.Regions = append(m.Regions, memory.Region{Start: g.Start, End: g.End, WipeOnFork: g.WipeOnFork})
		}
		o.Tasks = append(o.Tasks, m)
	}
	for _, p := range r.Early {
		o.Early = append(o.Early, EarlyPage{Task: p.Task, Addr: p.Addr, Data: p.Data})
	}
	// The target has its own copy.
	dir = imagesDir(t)
	if err := os.CopyFS(dir, os.DirFS(r.ImagesDir)); err != nil {
		t.Fatal(err)
	}
	return dir, o
}

// gone kills the source's copy for good.
func (tr *tree) gone(t *testing.T) {
	t.Helper()
	if err := errors.Join(tr.d.Granted(), tr.d.KillTree()); err != nil {
		t.Fatal(err)
	}
}

// imagesDir is on tmpfs, as an agent's is.
func imagesDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "TestRestore")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func testLog(t *testing.T) *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("LAZYMIG_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

func startCapsule(t *testing.T, o Options) *Capsule {
	t.Helper()
	o.ID = wire.NewID()
	o.BindRoot = "/"
	o.Log = testLog(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func hostHash(name string) (h uint64) {
	for _, b := range []byte(name) {
		h = h*31 + uint64(b)
	}
	return h
}
