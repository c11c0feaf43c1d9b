package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// Words of the checker's shared file.
const (
	wordReady = iota
	wordTicks
	wordBad
	wordEvents
	wordConts
	wordBase
	wordStopped
	wordZombie
	wordChild
	wordChurn
	wordChurned
	wordReserved
	wordSparse
)

// checker is a running testdata/checker.c.
type checker struct {
	t    *testing.T
	cmd  *exec.Cmd
	file *os.File
	pid  int
}

func startChecker(t *testing.T, mb, threads, kids int, attr *unix.SysProcAttr) *checker {
	t.Helper()
	return startCheckerBy(t, (*exec.Cmd).Start, mb, threads, kids, attr)
}

func startCheckerBy(t *testing.T, start func(*exec.Cmd) error, mb, threads, kids int, attr *unix.SysProcAttr) *checker {
	t.Helper()
	src, err := os.ReadFile("testdata/checker.c")
	if err != nil {
		t.Fatal(err)
	}
	bin := kerneltest.CompileC(t, string(src), "-pthread")
	path := filepath.Join(t.TempDir(), "shared")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c := &checker{t: t, file: f}
	c.cmd = exec.Command(bin, path, fmt.Sprint(mb), fmt.Sprint(threads), fmt.Sprint(kids))
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = null, null, null
	if attr == nil {
		attr = &unix.SysProcAttr{}
	}
	attr.Setsid = true
	c.cmd.SysProcAttr = attr
	if err := start(c.cmd); err != nil {
		t.Fatal(err)
	}
	c.pid = c.cmd.Process.Pid
	t.Cleanup(func() {
		_ = unix.Kill(-c.pid, unix.SIGKILL) // its process group
		_ = unix.Kill(-c.pid, unix.SIGCONT)
		_ = c.cmd.Wait()
		f.Close()
	})
	kerneltest.Eventually(t, "checker is ready", func() bool { return c.word(wordReady) == 1 })
	return c
}

func (c *checker) word(i int) uint64 {
	c.t.Helper()
	var b [8]byte
	if _, err := c.file.ReadAt(b[:], int64(8*i)); err != nil {
		c.t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (c *checker) set(i int, v uint64) {
	c.t.Helper()
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	if _, err := c.file.WriteAt(b[:], int64(8*i)); err != nil {
		c.t.Fatal(err)
	}
}

// runs waits until the tree has gone on, and checks that it goes on as if nothing had been.
func (c *checker) runs() {
	c.t.Helper()
	before := c.word(wordTicks)
	kerneltest.Eventually(c.t, "the tree runs", func() bool { return c.word(wordTicks) > before+50 })
	if n := c.word(wordBad); n != 0 {
		c.t.Errorf("%d wrong words", n)
	}
	if n := c.word(wordEvents); n != 0 {
		c.t.Errorf("the parent saw %d events of its stopped child", n)
	}
	if n := c.word(wordConts); n != 0 {
		c.t.Errorf("%d SIGCONT handlers ran", n)
	}
	if state, _, err := readStat(c.real(uint32(c.word(wordStopped)))); err != nil || state != 'T' {
		c.t.Errorf("the stopped child is in state %c (%v)", state, err)
	}
	// This process is the root's parent: it must have nothing to wait for.
	var si unix.Siginfo
	if err := unix.Waitid(unix.P_PID, c.pid, &si, unix.WSTOPPED|unix.WCONTINUED|unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		c.t.Errorf("wait: %v", err)
	} else if si.Signo != 0 {
		c.t.Errorf("the root's parent sees an event: %+v", si)
	}
}

// real finds the pid that this process sees for one inside the tree's PID namespace.
func (c *checker) real(vpid uint32) int {
	c.t.Helper()
	list, err := enumerate(c.pid)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range list {
		if p.vpid == vpid {
			return p.pid
		}
	}
	c.t.Fatalf("no process %d in the tree", vpid)
	return 0
}

// clean checks that nothing is left of a dump.
func (c *checker) clean(cgroups map[int]string, id wire.ID) {
	c.t.Helper()
	for pid, want := range cgroups {
		if got := cgroupOf(c.t, pid); got != want {
			c.t.Errorf("process %d is in cgroup %s instead of %s", pid, got, want)
		}
	}
	mi, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.pid))
	if err != nil {
		c.t.Fatal(err)
	}
	if strings.Contains(string(mi), "/smaps ") {
		c.t.Errorf("a bind over smaps is left:\n%s", mi)
	}
	h, err := openHierarchy()
	if err != nil {
		c.t.Fatal(err)
	}
	defer h.root.Close()
	if _, err := h.read("lazymig-"+id.String()[:8]+"-src", "cgroup.procs"); !errors.Is(err, unix.ENOENT) {
		c.t.Errorf("the cgroup is left (%v)", err)
	}
}

func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "0::") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

func (c *checker) cgroups() map[int]string {
	c.t.Helper()
	list, err := enumerate(c.pid)
	if err != nil {
		c.t.Fatal(err)
	}
	m := map[int]string{}
	for _, p := range list {
		if !p.zombie {
			m[p.pid] = cgroupOf(c.t, p.pid)
		}
	}
	return m
}
