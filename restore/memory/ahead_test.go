package memory

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// steps has a workload touch one page after the other, each when nothing is under way any more, and counts those that were there. What is
// zero at the source is never there before the touch, and needs nobody: it does not count.
func steps(t *testing.T, w *work, e *Engine, pages []int) (there, data int) {
	t.Helper()
	var buf [8]byte
	for _, p := range pages {
		kerneltest.Eventually(t, "answers", func() bool { return e.Stats().Outstanding == 0 })
		if err := w.sock.Send(binary.NativeEndian.AppendUint64(nil, uint64(p))); err != nil {
			t.Fatal(err)
		}
		n, _, err := w.recv(buf[:])
		if err != nil {
			t.Fatal(err)
		}
		if runs, _ := sourcePages(w.region.Start+uint64(p)*pageSize, 1); runs[0].Kind == Zero {
			continue
		}
		data++
		if string(buf[:n]) == "there" {
			there++
		}
	}
	if err := w.sock.Send(binary.NativeEndian.AppendUint64(nil, 1<<40)); err != nil {
		t.Fatal(err)
	}
	w.wait()
	return there, data
}

// Whoever walks or strides finds nine of ten pages there, without any push.
func TestPrefetch(t *testing.T) {
	const n = 300
	for _, c := range []struct {
		name        string
		first, step int
	}{{"up", 5, 1}, {"down", 20000, -1}, {"by 5", 0, 5}, {"by 96", 1, 96}, {"by 100, down", 32000, -100}} {
		t.Run(c.name, func(t *testing.T) {
			kerneltest.Leaks(t)
			w := startWork(t, "steps")
			e := engineFor(t, w, Options{})
			h := newHandler(e, 2)
			defer h.stop()
			e.SetBringer(h)
			w.go1()
			var pages []int
			for i := range n {
				pages = append(pages, c.first+i*c.step)
			}
			there, data := steps(t, w, e, pages)
			s := e.Stats()
			t.Logf("%d of %d there; %+v", there, data, s)
			if 10*there < 9*data || s.Faults-s.ZeroFaults > n/10 {
				t.Errorf("%d of %d pages were there before the touch, %d faults", there, data, s.Faults-s.ZeroFaults)
			}
			if s.PrefetchHits == 0 || s.PrefetchHits > s.Prefetched {
				t.Errorf("%d of %d prefetched pages have been passed", s.PrefetchHits, s.Prefetched)
			}
		})
	}
}

// What is prefetched waits behind faults, is asked again of the next handler, and a thread that is faster waits for it.
func TestPrefetchAsks(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "steps")
	e := engineFor(t, w, Options{})
	h := newHandler(e, 1)
	e.SetBringer(h)
	w.go1()
	touch := func(page int, wait bool) {
		t.Helper()
		if err := w.sock.Send(binary.NativeEndian.AppendUint64(nil, uint64(page))); err != nil {
			t.Fatal(err)
		}
		if wait {
			var buf [8]byte
			if _, _, err := w.recv(buf[:]); err != nil {
				t.Fatal(err)
			}
			kerneltest.Eventually(t, "answers", func() bool { return e.Stats().Outstanding == 0 })
		}
	}
	touch(0, true)
	touch(8, true)
	h.hold(true)
	touch(16, false)
	queued := func() (urgent, ahead []Want) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, w := range h.queue {
			if w.Urgent {
				urgent = append(urgent, w)
			}
			if w.Prefetch {
				ahead = append(ahead, w)
			}
		}
		return urgent, ahead
	}
	kerneltest.Eventually(t, "a want and what follows it", func() bool { u, a := queued(); return len(u) == 1 && len(a) > 0 })
	u, a := queued()
	if !slices.IsSortedFunc(append(u, a...), func(a, b Want) int { return a.rank() - b.rank() }) || h.queue[0].ID != u[0].ID {
		t.Errorf("asked in the order %+v", h.queue)
	}
	for _, w := range a {
		if w.Pages > piecePages || w.Addr < u[0].Addr+uint64(u[0].Pages)*pageSize {
			t.Errorf("prefetches %+v after %+v", w, u[0])
		}
	}
	h.stop()
	h2 := newHandler(e, 1)
	defer h2.stop()
	h2.hold(true)
	e.SetBringer(h2)
	h2.mu.Lock()
	again := len(h2.queue)
	at := slices.IndexFunc(h2.queue, func(w Want) bool { return w.Urgent })
	h2.queue[0], h2.queue[at] = h2.queue[at], h2.queue[0]
	first := h2.queue[0]
	h2.queue = h2.queue[1:]
	h2.mu.Unlock()
	if again != len(u)+len(a) {
		t.Errorf("%d wants were asked again, not %d", again, len(u)+len(a))
	}
	// Only the fault is answered; the thread goes on into what is under way, and that is not asked for twice.
	runs, data := sourcePages(first.Addr, first.Pages)
	if err := e.Brought(first.ID, runs, data); err != nil {
		t.Fatal(err)
	}
	var buf [8]byte
	if _, _, err := w.recv(buf[:]); err != nil {
		t.Fatal(err)
	}
	faults := e.Stats().Faults
	touch(16+int(first.Pages), false)
	kerneltest.Eventually(t, "the next fault", func() bool { return e.Stats().Faults > faults })
	h2.mu.Lock()
	for _, w := range h2.queue {
		if w.Urgent {
			t.Errorf("asked for what is under way: %+v", w)
		}
	}
	h2.mu.Unlock()
	h2.hold(false)
	if _, _, err := w.recv(buf[:]); err != nil {
		t.Fatal(err)
	}
	touch(1<<40, false)
	w.wait()
}

// noAhead is a handler that never answers what is prefetched.
type noAhead struct{ *handler }

func (h noAhead) Ask(w Want) error {
	if w.Prefetch {
		return nil
	}
	return h.handler.Ask(w)
}

// What has not been answered when all memory is here is not asked for again and again of a source that is gone.
func TestPrefetchAtTheEnd(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "steps")
	e := engineFor(t, w, Options{})
	h := newHandler(e, 2)
	defer h.stop()
	e.SetBringer(noAhead{h})
	w.go1()
	var buf [8]byte
	for _, page := range []uint64{0, 8, 16, 1 << 40} {
		if err := w.sock.Send(binary.NativeEndian.AppendUint64(nil, page)); err != nil {
			t.Fatal(err)
		}
		if page == 1<<40 {
			break
		}
		if _, _, err := w.recv(buf[:]); err != nil {
			t.Fatal(err)
		}
		if page == 16 {
			if s := e.Stats(); s.Outstanding == 0 {
				t.Errorf("nothing is prefetched: %+v", s)
			}
			e.StartBulk()
			waitDrained(t, e)
		}
	}
	w.wait()
	if s := e.Stats(); s.Outstanding != 0 {
		t.Errorf("%d wants are left when all is here", s.Outstanding)
	}
}

// How much flies follows the time that answers take.
func TestPrefetchWindow(t *testing.T) {
	a := ahead{window: firstFlying}
	for range 100 {
		a.took(200 * time.Microsecond)
	}
	if a.window != mostFlying {
		t.Errorf("a window of %d on an idle line", a.window)
	}
	for range 100 {
		a.took(5 * time.Millisecond)
	}
	if a.window != leastFlying {
		t.Errorf("a window of %d where answers queue", a.window)
	}
	for range 1000 { // the line has become longer
		a.took(20 * time.Millisecond)
	}
	if a.window != mostFlying {
		t.Errorf("a window of %d on a long line", a.window)
	}
}
