package ahead

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/preflight"
)

func randomSpans(r *rand.Rand) (l spans) {
	for at := r.Uint64N(5); at < 60; at += 1 + r.Uint64N(6) {
		end := at + 1 + r.Uint64N(6)
		l = append(l, span{at, end})
		at = end - 1 + r.Uint64N(2) // neighbours, too
	}
	return l
}

func (l spans) has(x uint64) bool {
	for _, s := range l {
		if s.start <= x && x < s.end {
			return true
		}
	}
	return false
}

func (l spans) check() error {
	for i, s := range l {
		if s.start >= s.end || i > 0 && l[i-1].end > s.start {
			return fmt.Errorf("%v", l)
		}
	}
	return nil
}

func TestSpans(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		a, b := randomSpans(r), randomSpans(r)
		both, without, with := a.both(b), a.without(b), a.with(b)
		for _, l := range []spans{both, without, with} {
			if err := l.check(); err != nil {
				t.Fatal(err)
			}
		}
		for x := range uint64(80) {
			if both.has(x) != (a.has(x) && b.has(x)) || without.has(x) != (a.has(x) && !b.has(x)) || with.has(x) != (a.has(x) || b.has(x)) {
				t.Fatalf("%v and %v at %d: both %v, without %v, with %v", a, b, x, both, without, with)
			}
		}
	}
}

func TestPages(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	p, o, model, other := newPages(), newPages(), map[uint64]bool{}, map[uint64]bool{}
	const most = 2 * chunkSize / pageSize
	for i := range 400 {
		first := r.Uint64N(most)
		n := min(1+r.Uint64N(200), most-first)
		s := span{first * pageSize, (first + n) * pageSize}
		missing := uint64(0)
		for k := first; k < first+n; k++ {
			if !model[k] {
				missing++
			}
			switch i % 3 {
			case 0, 1:
				model[k] = true
			case 2:
				delete(model, k)
			}
			other[k] = true
		}
		if got := p.missing(s); got != missing {
			t.Fatalf("%d of %v are missing, not %d", got, s, missing)
		}
		if o.set(s); i%3 < 2 {
			p.set(s)
		} else {
			p.clear(s)
		}
		if p.n != len(model) || o.n != len(other) {
			t.Fatalf("%d and %d pages where %d and %d are", p.n, o.n, len(model), len(other))
		}
	}
	keep := spans{{10 * pageSize, 9000 * pageSize}, {9100 * pageSize, 40000 * pageSize}}
	p.keep(keep)
	p.and(o)
	n := 0
	for k := range model {
		if keep.has(k*pageSize) && other[k] {
			n++
		}
	}
	_ = p.words(func(addr, mask uint64) error {
		for i := range uint64(64) {
			if k := addr/pageSize + i; mask>>i&1 != 0 && (!model[k] || !keep.has(k*pageSize)) {
				t.Errorf("page %d is in it", k)
			}
		}
		return nil
	})
	if p.n != n {
		t.Errorf("%d pages are left, not %d", p.n, n)
	}
}

func TestDirect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for flags, want := range map[int]bool{unix.O_RDONLY: false, unix.O_RDWR | unix.O_DIRECT: true, unix.O_WRONLY | unix.O_DIRECT: false} {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			kerneltest.Skip(t, "open with O_DIRECT: %v", err)
		}
		got, err := direct(os.Getpid())
		unix.Close(fd)
		if err != nil || got != want {
			t.Errorf("with flags %#x: %v, %v", flags, got, err)
		}
	}
}

// TestStrays: a userfaultfd that a child has got by a fork while it was made is closed there.
func TestStrays(t *testing.T) {
	need(t)
	kerneltest.Leaks(t)
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	f := os.NewFile(fd, "userfaultfd")
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{f}
	err := cmd.Start()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}()
	v := &victim{t: t, pid: cmd.Process.Pid}
	if _, n := v.traces(); n != 1 {
		t.Fatalf("%d descriptors", n)
	}
	c := New(Options{Borrow: preflight.Borrow, CloseIn: preflight.CloseIn})
	if err := c.closeStrays([]Process{{ID: 1, PID: v.pid}}); err != nil {
		t.Fatal(err)
	}
	if _, n := v.traces(); n != 0 {
		t.Errorf("%d descriptors are left", n)
	}
}
