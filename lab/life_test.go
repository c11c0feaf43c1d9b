package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// A host must not keep another test's FUSE mount alive, nor fail on it; and a
// set-up that fails says why and leaves nothing.
func TestUpFails(t *testing.T) {
	kerneltest.Need(t, kerneltest.Root, kerneltest.TimeNS)
	kerneltest.Leaks(t)
	dir := filepath.Join(t.TempDir(), "lab")
	_, err := Up(t.Context(), Options{Dir: dir, Share: []string{"/does/not/exist"}})
	if err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Fatalf("error %v", err)
	}
	ents, err := os.ReadDir(dir)
	if err != nil || len(ents) != 0 {
		t.Errorf("left behind: %v, %v", ents, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Up(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// holdForever is the body of TestDiesWithMaker's child.
func holdForever() {
	l, err := Up(context.Background(), Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(l.dir, l.A.Pid, l.B.Pid)
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the test kills us
}

func TestDiesWithMaker(t *testing.T) {
	kerneltest.Need(t, kerneltest.Root, kerneltest.TimeNS)
	kerneltest.Leaks(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "hold-forever")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	var a, b int
	_, err = fmt.Fscan(out, &dir, &a, &b)
	if err == nil {
		// A living lab's folder is not swept.
		if err := sweep(filepath.Dir(dir)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "A.sock")); err != nil {
			t.Errorf("folder of a living lab: %v", err)
		}
	}
	if kerr := cmd.Process.Kill(); kerr != nil {
		t.Fatal(kerr)
	}
	_ = cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{a, b} {
		kerneltest.Eventually(t, fmt.Sprintf("death of init %d", pid), func() bool {
			return errors.Is(unix.Kill(pid, 0), unix.ESRCH)
		})
	}
	// The next lab removes what the killed maker has left.
	l, err := Up(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Down(); err != nil {
		t.Error(err)
	}
	for _, d := range []string{dir, l.dir} {
		if _, err := os.Stat(d); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("folder of a dead lab: %v", err)
		}
	}
}

func TestBackground(t *testing.T) {
	kerneltest.Need(t, kerneltest.Root, kerneltest.TimeNS)
	kerneltest.Leaks(t)
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if _, err := Attach(dir); !errors.Is(err, ErrNotUp) {
		t.Fatalf("attach before: %v", err)
	}
	if err := Background(t.Context(), Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			_ = Stop(context.Background(), dir)
		}
	})
	if err := Background(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("second lab: %v", err)
	}
	l, err := Attach(dir)
	if err != nil {
		t.Fatal(err)
	}
	if out := sh(t, l.B, "uname -n"); out != "lab-b" {
		t.Errorf("attached host says %q", out)
	}
	if err := Stop(patience(t), dir); err != nil {
		t.Fatal(err)
	}
	stopped = true
	if err := Stop(t.Context(), dir); !errors.Is(err, ErrNotUp) {
		t.Errorf("stop again: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder after stop: %v", err)
	}
}
