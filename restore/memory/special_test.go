package memory

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// started is a workload whose faults are served by a good handler.
func started(t *testing.T, name string) (*work, *Engine, *handler) {
	t.Helper()
	kerneltest.Leaks(t)
	w := startWork(t, name)
	e := engineFor(t, w, Options{})
	h := newHandler(e, 2)
	t.Cleanup(h.stop)
	e.SetBringer(h)
	return w, e, h
}

// TestGuardInstalled: the process makes guards of pages, some of which have not come.
func TestGuardInstalled(t *testing.T) {
	probe, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(probe) }()
	if err := unix.Madvise(probe, 102); err != nil {
		kerneltest.Skip(t, "MADV_GUARD_INSTALL (6.13): %v", err)
	}
	w, e, _ := started(t, "guard")
	w.go1()
	w.await("touched")
	kerneltest.Eventually(t, "nothing is asked for", func() bool { return e.Stats().Outstanding == 0 })
	w.go1()
	w.await("guarded")
	e.StartBulk()
	waitDrained(t, e)
	w.go1()
	w.wait()
	// Where the source has nothing there is nothing to be kept out, or to be found.
	data := func(first uint64, n uint32) (pages uint64) {
		runs, _ := sourcePages(w.region.Start+first*pageSize, n)
		for _, r := range runs {
			if r.Kind == Data {
				pages += uint64(r.Pages)
			}
		}
		return pages
	}
	if s := e.Stats(); s.GuardedPages != data(100, 50) || s.AbsentPages != data(200, 8) || s.Unproven != 0 {
		t.Errorf("%+v", s)
	}
}

// badPages answers pages 3 and 4 of each 16 as a guard and as poison.
type badPages struct{ e *Engine }

func (b badPages) Ask(w Want) error {
	go func() {
		var runs []Run
		var data []byte
		for i := range uint64(w.Pages) {
			a := w.Addr + i*pageSize
			switch (a - b.e.regions[0].start) / pageSize % 16 {
			case 3:
				runs = append(runs, Run{Guard, 1})
			case 4:
				runs = append(runs, Run{Poison, 1})
			default:
				r, d := sourcePages(a, 1)
				runs, data = append(runs, r...), append(data, d...)
			}
		}
		_ = b.e.Brought(w.ID, runs, data)
	}()
	return nil
}

// TestPoison: guards that nobody makes again, and poison, are SIGBUS, never bytes.
func TestPoison(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "poison")
	e := engineFor(t, w, Options{})
	e.SetBringer(badPages{e})
	w.go1()
	w.wait()
	if s := e.Stats(); s.GuardPages == 0 {
		t.Errorf("%+v", s)
	}
}

// TestAnchor: a mapping that is split before its first page has come is one again afterwards.
func TestAnchor(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "merge")
	e := engineFor(t, w, Options{FaultPages: 1})
	h := newHandler(e, 2)
	defer h.stop()
	e.SetBringer(h)
	w.go1()
	w.await("ready")
	e.Anchor()
	w.go1()
	w.wait()
	if s := e.Stats(); s.LostPages != 0 {
		t.Errorf("%+v", s)
	}
}

// TestExec: after execve nothing of the old memory is wanted; a vfork child shares its parent's.
func TestExec(t *testing.T) {
	w, e, _ := started(t, "exec")
	w.go1()
	w.await("executed")
	e.StartBulk()
	waitDrained(t, e)
	w.go1()
	w.wait()
}

// TestKilled: a process that is killed while a thread waits for a page ends the drain.
func TestKilled(t *testing.T) {
	w, e, h := started(t, "touch")
	h.hold(true)
	w.go1()
	kerneltest.Eventually(t, "a fault is read", func() bool { return e.Stats().Faults > 0 })
	if err := w.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-w.ended
	h.hold(false)
	e.StartBulk()
	waitDrained(t, e)
}

// TestOrphan: a child lives on, with pages missing, after its parent has ended.
func TestOrphan(t *testing.T) {
	w, e, _ := started(t, "orphan")
	w.go1()
	w.await("forked")
	kerneltest.Eventually(t, "the child's memory is watched", func() bool { return e.Stats().Spaces == 2 })
	w.go1()
	w.go1()
	w.await("checked")
	w.wait()
	e.StartBulk()
	waitDrained(t, e)
}

// TestMoveWait: a thread waits for a page that another one moves away.
func TestMoveWait(t *testing.T) {
	w, e, h := started(t, "movewait")
	h.hold(true)
	w.go1()
	kerneltest.Eventually(t, "the fault is read", func() bool { return e.Stats().Faults > 0 })
	w.go1()
	w.await("moved")
	h.hold(false)
	w.go1()
	w.wait()
	e.StartBulk()
	waitDrained(t, e)
}

// TestNoHandler: without a handler a thread waits; the next one is asked for all that is outstanding.
func TestNoHandler(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "touch")
	e := engineFor(t, w, Options{})
	e.StartBulk()
	w.go1()
	kerneltest.Eventually(t, "faults are read", func() bool { return e.Stats().Faults > 0 })
	dead := newHandler(e, 1)
	dead.hold(true)
	e.SetBringer(dead)
	kerneltest.Eventually(t, "the first handler is asked", func() bool {
		dead.mu.Lock()
		defer dead.mu.Unlock()
		return dead.asked > 0
	})
	dead.stop()
	e.SetBringer(nil)
	h := newHandler(e, 1)
	defer h.stop()
	e.SetBringer(h)
	w.wait()
	waitDrained(t, e)
}

// TestPlace: pages that came with the images are there at once, and are not asked for.
func TestPlace(t *testing.T) {
	w, e, h := started(t, "idle")
	mid := w.region.Start + 100*pageSize
	page := func(addr uint64, n uint32) (data []byte) {
		for i := range uint64(n) {
			one := make([]byte, pageSize) // a zero page comes as bytes too
			if _, d := sourcePages(addr+i*pageSize, 1); d != nil {
				copy(one, d)
			}
			data = append(data, one...)
		}
		return data
	}
	if err := e.Place(w.pid(), mid, page(mid, 20)); err != nil {
		t.Fatal(err)
	}
	if err := e.Place(w.pid(), mid+10*pageSize, page(mid+10*pageSize, 20)); err != nil {
		t.Fatal("again: ", err)
	}
	if left, all := e.Stats().Left, (w.region.End-w.region.Start)/pageSize; left != all-30 {
		t.Errorf("%d of %d pages left", left, all)
	}
	for _, c := range []struct {
		id   uint32
		addr uint64
		data []byte
		want error
	}{
		{w.pid(), mid + 1, make([]byte, pageSize), unix.EINVAL},
		{w.pid(), mid, make([]byte, 5), unix.EINVAL},
		{w.pid(), mid, nil, unix.EINVAL},
		{w.pid(), w.region.End, make([]byte, pageSize), unix.EFAULT},
		{w.pid() + 1, mid, make([]byte, pageSize), unix.ESRCH},
	} {
		if err := e.Place(c.id, c.addr, c.data); !errors.Is(err, c.want) {
			t.Errorf("place %d bytes at %#x in %d: %v, not %v", len(c.data), c.addr, c.id, err, c.want)
		}
	}
	h.mu.Lock()
	asked := h.asked
	h.mu.Unlock()
	if asked != 0 {
		t.Errorf("asked %d times", asked)
	}
	w.go1()
	w.await("idle")
	e.StartBulk()
	waitDrained(t, e)
	w.go1()
	w.wait()
}

// TestAddTask refuses what was not announced, or twice.
func TestAddTask(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "idle")
	e := engineFor(t, w, Options{})
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := e.AddTask(w.pid(), f); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("twice: %v", err)
	}
	if err := e.AddTask(w.pid()+1, f); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := f.Stat(); err != nil {
		t.Error("a refused descriptor was taken: ", err)
	}
	_ = w.cmd.Process.Kill()
}

// TestSparse: a reservation of 256 GB with a page here and there; what the source says is absent is not asked for.
func TestSparse(t *testing.T) {
	const stride, island = 1 << 16, 16
	kerneltest.Leaks(t)
	w := startWork(t, "sparse")
	e := engineFor(t, w, Options{})
	h := &handler{e: e}
	h.pages = func(addr uint64, n uint32) (runs []Run, data []byte) {
		for i := range uint64(n) {
			a := addr + i*pageSize
			if (a-w.region.Start)/pageSize%stride == 5 {
				r, d := sourcePages(a, 1)
				runs, data = append(runs, r...), append(data, d...)
			} else {
				runs = append(runs, Run{Zero, 1})
			}
		}
		return runs, data
	}
	h.start(2)
	defer h.stop()
	e.SetBringer(h)
	var absent []Region
	for a := w.region.Start; a < w.region.End; a += stride * pageSize {
		absent = append(absent, Region{Start: a + island*pageSize, End: a + stride*pageSize})
	}
	if err := e.Absent(w.pid(), absent); err != nil {
		t.Fatal(err)
	}
	if err := e.Absent(w.pid()+1, absent); !errors.Is(err, unix.ESRCH) {
		t.Errorf("unknown task: %v", err)
	}
	if err := e.Absent(w.pid(), []Region{{Start: 1, End: 2}}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("no pages: %v", err)
	}
	w.go1()
	w.await("touched")
	e.StartBulk()
	waitDrained(t, e)
	if n := (w.region.End - w.region.Start) / pageSize / stride; e.Stats().PagesCopied > n {
		t.Errorf("%d pages copied of %d", e.Stats().PagesCopied, n)
	}
	w.go1()
	w.wait()
}
