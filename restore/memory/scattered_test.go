package memory

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestScattered: what lies scattered is asked for by few wants of many ranges, none of which has more than it may, and no page twice. One that fails is asked for range by
// range, and so is a range that could not be read. The workload sees the same bytes.
func TestScattered(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "idle")
	const ranges, bulk = 8, 64
	e := engineFor(t, w, Options{Window: 2, BulkPages: bulk, Ranges: ranges})
	h := &handler{e: e}
	var mu sync.Mutex
	broken := map[uint64]int{} // pages that can't be read the first time
	h.pages = func(addr uint64, n uint32) ([]Run, []byte) {
		mu.Lock()
		defer mu.Unlock()
		if _, ok := broken[addr]; ok {
			if broken[addr]++; broken[addr] == 1 {
				return []Run{{Error, n}}, nil
			}
		}
		return sourcePages(addr, n)
	}
	h.start(1)
	defer h.stop()
	base := (w.region.Start + wordSize) &^ (wordSize - 1)
	const hot = 40
	for i := range uint64(hot) { // one page of each 128, and one more 8 pages behind it
		broken[base+i/2*2*wordSize+i%2*8*pageSize] = 0
	}
	var list []HotPages
	for i := range uint64(hot / 2) {
		if a := base + i*2*wordSize; a+wordSize <= w.region.End {
			list = append(list, HotPages{Task: w.pid(), Addr: a, Words: 1, Mask: 1 | 1<<8})
		}
	}
	if err := e.Hot(list); err != nil {
		t.Fatal(err)
	}
	h.hold(true)
	e.SetBringer(h)
	w.go1()
	w.await("idle")
	e.StartBulk()
	asked := map[uint64]bool{}
	wants := 0
	h.mu.Lock()
	queue := append([]Want(nil), h.queue...)
	h.mu.Unlock()
	for _, q := range queue {
		if len(q.More) >= ranges || q.Total() > bulk {
			t.Errorf("%d ranges, %d pages in one want", 1+len(q.More), q.Total())
		}
		if _, hot := broken[q.Addr]; hot {
			wants++
		}
		for _, s := range append([]Span{{q.Addr, q.Pages}}, q.More...) {
			for i := range uint64(s.Pages) {
				if a := s.Addr + i*pageSize; asked[a] {
					t.Errorf("%#x is asked for twice", a)
				} else {
					asked[a] = true
				}
			}
		}
	}
	if many := (2*len(list) + ranges - 1) / ranges; wants != many {
		t.Errorf("%d ranges are asked for by %d wants, not by %d: %+v", 2*len(list), wants, many, queue)
	}
	h.mu.Lock()
	fail := h.queue[0] // as the handler says it of a request that the source refused
	h.queue = h.queue[1:]
	h.mu.Unlock()
	e.Failed(fail.ID, unix.EIO)
	kerneltest.Eventually(t, "each range asked for on its own", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		n := 0
		for _, q := range h.queue {
			for _, s := range append([]Span{{fail.Addr, fail.Pages}}, fail.More...) {
				if len(q.More) == 0 && q.Addr == s.Addr && q.Pages == s.Pages {
					n++
				}
			}
		}
		return n == 1+len(fail.More)
	})
	h.hold(false)
	waitDrained(t, e)
	w.go1()
	w.wait()
	s := e.Stats()
	if s.ErrorPages == 0 || s.Left != 0 {
		t.Errorf("%+v", s)
	}
}
