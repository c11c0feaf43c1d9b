package dump

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestCannotFreeze tries to freeze a process that waits, uninterruptibly, for a file server that does not answer: it is tried as often as
// there are tries, then fails, and the process is where it was.
func TestCannotFreeze(t *testing.T) {
	need(t)
	kerneltest.Need(t, kerneltest.FUSE)
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	dir := t.TempDir()
	if err := unix.Mount("silent", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev.Fd())); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	cmd := exec.Command("/bin/cat", dir+"/x")
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		dev.Close() // its request ends with an error, and with it the process
		_ = cmd.Wait()
	}()
	proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	read := func(name string) string {
		b, err := os.ReadFile(proc + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	kerneltest.Eventually(t, "the process to wait", func() bool { return strings.Contains(read("stat"), "(cat) D ") })
	before := read("cgroup")
	tries := &counter{}
	d := prepare(t, Options{PID: cmd.Process.Pid, ID: wire.NewID(), Log: slog.New(slog.NewTextHandler(tries, nil))})
	if _, err := d.Freeze(testContext(t)); !errors.Is(err, errTimeout) {
		t.Errorf("freeze: %v", err)
	}
	if tries.n != freezeTries-1 {
		t.Errorf("it was thawed and tried again %d times, want %d", tries.n, freezeTries-1)
	}
	if now := read("cgroup"); now != before {
		t.Errorf("it is in %q, was in %q", now, before)
	}
}

// counter counts the lines of a log that tell of another try.
type counter struct{ n int }

func (c *counter) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "freeze again") {
		c.n++
	}
	return len(b), nil
}

// TestAbortShort leaves the dumping process without a descriptor: its keeper, which has its own, undoes all.
func TestAbortShort(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 2, 1, nil)
	before := c.cgroups()
	o := options(t, c)
	d := prepare(t, o)
	if _, err := d.Freeze(testContext(t)); err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err := d.Abort()
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.runs()
	c.clean(before, o.ID)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
