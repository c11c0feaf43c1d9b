package ahead

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/preflight"
)

// victim is a program that runs on while it is copied.
type victim struct {
	t      *testing.T
	cmd    *exec.Cmd
	pid    int
	status string
}

func need(t *testing.T) {
	t.Helper()
	kerneltest.Need(t, kerneltest.Root, kerneltest.PagemapScan)
	if !Supported() {
		kerneltest.Skip(t, "%v", ErrUnsupported)
	}
}

// churn starts e2e's program that changes its address space all the time.
func churn(t *testing.T, mb int) *victim {
	t.Helper()
	src, err := os.ReadFile("../e2e/testdata/churn.c")
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{t: t, status: filepath.Join(t.TempDir(), "status")}
	v.cmd = exec.Command(kerneltest.CompileC(t, string(src), "-pthread"), strconv.Itoa(mb), v.status)
	v.cmd.Stderr = os.Stderr
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v.pid = v.cmd.Process.Pid
	t.Cleanup(func() {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait() // killed, or ended before
	})
	v.goesOn(64)
	return v
}

// ops is how much it has done, and how much of that was wrong.
func (v *victim) ops() (n, wrong int) {
	b, _ := os.ReadFile(v.status)
	if f := strings.Fields(string(b)); len(f) == 5 {
		n, _ = strconv.Atoi(f[1])
		wrong, _ = strconv.Atoi(f[4])
	}
	return n, wrong
}

func (v *victim) goesOn(by int) {
	v.t.Helper()
	before, _ := v.ops()
	kerneltest.Eventually(v.t, "program to go on", func() bool { n, _ := v.ops(); return n >= before+by })
}

func (v *victim) stop() {
	v.t.Helper()
	if err := unix.Kill(v.pid, unix.SIGSTOP); err != nil {
		v.t.Fatal(err)
	}
	kerneltest.Eventually(v.t, "program to stop", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.pid))
		return bytes.Contains(b, []byte(") T "))
	})
}

func (v *victim) tree() ([]Process, error) { return []Process{{ID: 1, PID: v.pid}}, nil }

// traces are what tracking leaves in the process: registered mappings and descriptors.
func (v *victim) traces() (uw int, uffds int) {
	v.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", v.pid))
	if err != nil {
		v.t.Fatal(err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", v.pid))
	if err != nil {
		v.t.Fatal(err)
	}
	for _, f := range fds {
		if l, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", v.pid, f.Name())); strings.Contains(l, "userfaultfd") {
			uffds++
		}
	}
	return bytes.Count(b, []byte(" uw")), uffds
}

// target keeps what a target would.
type target map[uint64][]byte

func (g target) take(b Batch) error {
	data := b.Data
	for _, r := range b.Runs {
		for i := range uint64(r.Pages) {
			g[r.Addr+i*pageSize] = append(g[r.Addr+i*pageSize][:0], data[:pageSize]...)
			data = data[pageSize:]
		}
	}
	if len(data) != 0 {
		return fmt.Errorf("%d bytes too many", len(data))
	}
	return nil
}

// TestGoodCopies copies a program that moves, drops, unmaps, maps, protects and writes memory, and forks: every copy that is called good when it has
// stopped is what is there. Afterwards nothing is left of the tracking, and the program goes on. So it is where writes are tracked, where pages are compared, and where they are on a kernel
// that says page by page which are there.
func TestGoodCopies(t *testing.T) {
	t.Run("tracked", func(t *testing.T) { need(t); goodCopies(t, false, false) })
	t.Run("compared", func(t *testing.T) { goodCopies(t, true, false) })
	t.Run("compared, old kernel", func(t *testing.T) { goodCopies(t, true, true) })
}

func goodCopies(t *testing.T, compare, entries bool) {
	kerneltest.Need(t, kerneltest.Root)
	kerneltest.Leaks(t)
	v := churn(t, 32)
	for n := range 3 {
		got := target{}
		o := Options{Send: got.take, Room: 1 << 30, Compare: compare}
		if !compare {
			o.Borrow, o.CloseIn = preflight.Borrow, preflight.CloseIn
		}
		c := New(o)
		defer c.Close()
		track := func() {
			t.Helper()
			if err := c.Track(v.tree); err != nil {
				t.Fatal(err)
			}
			for _, s := range c.spaces {
				s.entries = entries
			}
		}
		for range 6 {
			track()
			if n > 0 { // what has been protected for a while is as good
				if err := c.Protect(); err != nil {
					t.Fatal(err)
				}
				v.goesOn(64)
				if d, err := c.Dirty(nil); err != nil || d == 0 {
					t.Errorf("%d bytes have been written since: %v", d, err)
				}
				if _, err := c.Some(context.Background(), 4<<20); err != nil {
					t.Fatal(err)
				}
				v.goesOn(64)
			}
			if _, err := c.Round(context.Background()); err != nil {
				t.Fatal(err)
			}
			v.goesOn(64)
		}
		if _, err := c.Round(context.Background()); err != nil {
			t.Fatal(err)
		}
		v.stop()
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", v.pid))
		if err != nil {
			t.Fatal(err)
		}
		defer mem.Close()
		page := make([]byte, pageSize)
		wrong := 0
		all, _ := v.tree()
		good, err := c.Good(all, func(_ uint32, addr, mask uint64) error {
			for ; mask != 0; mask, addr = mask>>1, addr+pageSize {
				if mask&1 == 0 {
					continue
				}
				if _, err := mem.ReadAt(page, int64(addr)); err != nil {
					return err
				}
				if !bytes.Equal(page, got[addr]) {
					wrong++
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d of %d pages are good, %d were sent", good/pageSize, 32<<20/pageSize, len(got))
		if wrong != 0 || good < 4<<20 {
			t.Errorf("%d of %d bytes are good, of these %d pages are wrong", good, 32<<20, wrong)
		}
		if uw, uffds := v.traces(); (uw == 0) != compare || uffds != 0 {
			t.Errorf("while tracked: %d mappings, %d descriptors", uw, uffds)
		}
		c.Close()
		if uw, uffds := v.traces(); uw != 0 || uffds != 0 {
			t.Errorf("left behind: %d mappings, %d descriptors", uw, uffds)
		}
		if err := unix.Kill(v.pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		v.goesOn(64)
	}
	if err := unix.Kill(v.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Wait(); err != nil {
		t.Errorf("the program ended with %v", err)
	}
}
