package kerneltest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "orphan" {
		for { // a helper that outlives its parent; the test kills it
			_ = unix.Pause() // not select{}: the runtime would call that a deadlock
		}
	}
	Main(m)
}

// expectLeak says whether a picture taken after leak shows it, and that it is
// gone after undo.
func expectLeak(t *testing.T, want string, leak func() (undo func())) {
	t.Helper()
	primeRuntime(t)
	before := snapshot(t)
	undo := leak()
	found := poll(Patience, func() bool {
		for _, l := range compare(before, snapshot(t)) {
			if strings.Contains(l, want) {
				return true
			}
		}
		return false
	})
	if !found {
		t.Errorf("no leak %q seen in %q", want, compare(before, snapshot(t)))
	}
	undo()
	if !poll(Patience, func() bool { return len(compare(before, snapshot(t))) == 0 }) {
		t.Errorf("still left: %q", compare(before, snapshot(t)))
	}
}

func TestLeaksSeesDescriptor(t *testing.T) {
	expectLeak(t, "/dev/zero", func() func() {
		f, err := os.Open("/dev/zero")
		if err != nil {
			t.Fatal(err)
		}
		return func() { f.Close() }
	})
}

func TestLeaksSeesGoroutine(t *testing.T) {
	expectLeak(t, "TestLeaksSeesGoroutine", func() func() {
		c := make(chan struct{})
		go func() { <-c }()
		return func() { close(c) }
	})
}

func TestLeaksSeesProcess(t *testing.T) {
	expectLeak(t, "(sleep)", func() func() {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	})
}

// A helper whose parent is gone is no descendant any more.
func TestLeaksSeesOrphanOfOurExecutable(t *testing.T) {
	expectLeak(t, "orphan", func() func() {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("sh", "-c", `"$0" orphan >/dev/null 2>&1 & echo $!`, self).Output()
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestLeaksSeesMount(t *testing.T) {
	NeedRoot(t)
	dir := t.TempDir()
	expectLeak(t, dir, func() func() {
		if err := unix.Mount("leak", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestLeaksSeesCgroup(t *testing.T) {
	NeedRoot(t)
	dir := filepath.Join(CgroupRoot(t), "lazymig-leaktest-"+filepath.Base(t.TempDir()))
	expectLeak(t, dir, func() func() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
}

// A process that took leave of its parent, its session and its executable is in the run's cgroup still.
func TestLeaksSeesDaemon(t *testing.T) {
	NeedRoot(t)
	Need(t, CgroupFreezer)
	expectLeak(t, "(sleep)", func() func() {
		out, err := exec.Command("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!").Output()
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestRemoveCgroup(t *testing.T) {
	NeedRoot(t)
	top := filepath.Join(CgroupRoot(t), "remove")
	dir, err := makeRunCgroup(top)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	removeCgroup(top)
	if err := cmd.Wait(); err == nil {
		t.Error("a process survived the removal of its cgroup")
	}
	if _, err := os.Stat(top); !os.IsNotExist(err) {
		t.Errorf("the cgroup is there: %v", err)
	}
}

// The whole of Leaks over a test that cleans up.
func TestLeaksClean(t *testing.T) {
	t.Run("clean", func(t *testing.T) {
		Leaks(t)
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	})
}

func TestMainIsolatesMounts(t *testing.T) {
	NeedRoot(t)
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.Readlink("/proc/" + os.Getenv("LAZYMIG_TEST_PARENT") + "/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if own == parent {
		t.Error("the tests run in their parent's mount namespace")
	}
}

// What the caller of this test binary left open does not come here.
func TestMainKeepsStrayDescriptors(t *testing.T) {
	NeedRoot(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestStrayInside$", "-test.v")
	cmd.ExtraFiles = []*os.File{w} // its number 3
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, isolatedEnv+"=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, strayEnv+"="+stray(t, w))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStrayInside is the inner half of the test above.
func TestStrayInside(t *testing.T) {
	unwanted := os.Getenv(strayEnv)
	if unwanted == "" {
		return
	}
	all, err := descriptors()
	if err != nil {
		t.Fatal(err)
	}
	for id := range all {
		if strings.HasSuffix(id, " "+unwanted) {
			t.Errorf("descriptor %s came through", id)
		}
	}
}

const strayEnv = "LAZYMIG_TEST_STRAY"

func stray(t *testing.T, f *os.File) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestCompileC(t *testing.T) {
	const src = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n"
	p := CompileC(t, src)
	if q := CompileC(t, src); q != p {
		t.Errorf("compiled twice: %s and %s", p, q)
	}
	if q := CompileC(t, src, "-static"); q == p {
		t.Error("other flags, same program")
	}
	out, err := exec.Command(p).Output()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestNeedFindsFeatures(t *testing.T) {
	NeedRoot(t)
	// Where CI runs all are there; a probe that is wrong would skip everything.
	Need(t, Userfaultfd, FUSE, CgroupFreezer, PagemapScan, TimeNS, GCC)
	if root := RepoRoot(t); !strings.HasSuffix(filepath.Dir(filepath.Dir(mustGetwd(t))), root) {
		t.Errorf("root %s", root)
	}
}

func mustGetwd(t *testing.T) string {
	t.Helper()
	d, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return d
}
