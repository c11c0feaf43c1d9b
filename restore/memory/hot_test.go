package memory

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestHotFirst: what is named as hot is asked for before all else, in that order; then the rest. The workload sees the same bytes.
func TestHotFirst(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "idle")
	e := engineFor(t, w, Options{Window: 1, BulkPages: 16})
	h := &handler{e: e}
	var mu sync.Mutex
	var asked []uint64
	h.pages = func(addr uint64, n uint32) ([]Run, []byte) {
		mu.Lock()
		for i := range uint64(n) {
			asked = append(asked, addr+i*pageSize)
		}
		mu.Unlock()
		return sourcePages(addr, n)
	}
	h.start(1)
	defer h.stop()
	base := (w.region.Start + 3*wordSize) &^ (wordSize - 1) // within, whatever it begins at
	list := []HotPages{
		{Task: w.pid(), Words: 1, Addr: base + 7*wordSize, Mask: 1<<5 | 1<<6 | 1<<20 | 1<<63},
		{Task: w.pid(), Words: 1, Addr: base + 8*wordSize, Mask: 1},
		{Task: w.pid() + 1, Words: 1, Addr: base, Mask: 1},
		{Task: w.pid(), Words: 2, Addr: base + 2*wordSize, Mask: ^uint64(0)},
		{Task: w.pid(), Words: 1, Addr: 0, Mask: 1},
		{Task: w.pid(), Words: 2, Addr: base, Mask: 1 << 9},
	}
	var want []uint64
	for _, x := range list {
		for n := range uint64(x.Words) {
			for i := range uint64(wordPages) {
				if a := x.Addr + n*wordSize + i*pageSize; x.Task == w.pid() && a != 0 && x.Mask>>i&1 != 0 {
					want = append(want, a)
				}
			}
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
	// The handler answers what waits in any order: one after the other, as they come.
	for len(hotOrder(&mu, &asked)) < len(want) {
		h.answerFirst()
	}
	if got := hotOrder(&mu, &asked); !slices.Equal(got[:len(want)], want) {
		t.Errorf("asked for %#x first, not for %#x", got[:len(want)], want)
	}
	h.hold(false)
	waitDrained(t, e)
	w.go1()
	w.wait()
	if s := e.Stats(); s.HotPages != uint64(len(want)) || s.Left != 0 {
		t.Errorf("%d hot pages: %+v", len(want), s)
	}
}

func hotOrder(mu *sync.Mutex, asked *[]uint64) []uint64 {
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(*asked)
}

// answerFirst answers the want that was asked for first.
func (h *handler) answerFirst() {
	h.mu.Lock()
	if len(h.queue) == 0 {
		h.mu.Unlock()
		return
	}
	w := h.queue[0]
	h.queue = h.queue[1:]
	h.mu.Unlock()
	runs, data := h.answer(w)
	_ = h.e.Brought(w.ID, runs, data)
}

// TestHotPieces: pieces near each other become one, and what is shared is found by its mapping.
func TestHotPieces(t *testing.T) {
	private, object := &region{task: 1, start: wordSize, pages: 100}, &region{task: objectBit | 1, pages: 50}
	e := &Engine{tasks: map[uint32]*task{
		1:             {regions: []*region{private}, shared: []SharedRange{{Start: 10 * wordSize, End: 10*wordSize + 40*pageSize, Object: objectBit | 1, Offset: 20 * pageSize}}},
		objectBit | 1: {regions: []*region{object}},
	}}
	for _, c := range []struct {
		name string
		in   HotPages
		want []piece
	}{
		{"one page", HotPages{1, 1, wordSize, 1 << 3}, []piece{{private, 3, 1}}},
		{"a gap that is filled, and one that is not", HotPages{1, 1, wordSize, 1 | 1<<4 | 1<<9}, []piece{{private, 0, 5}, {private, 9, 1}}},
		{"the last page, and beyond", HotPages{1, 1, 2 * wordSize, 1<<35 | 1<<36}, []piece{{private, 99, 1}}},
		{"all, and more", HotPages{1, 1 << 30, 0, ^uint64(0)}, []piece{{private, 0, 100}, {object, 20, 30}}},
		{"shared", HotPages{1, 1, 10 * wordSize, 1 | 1<<39}, []piece{{object, 20, 1}}},
		{"by the object's number", HotPages{objectBit | 1, 1, 0, 1}, nil},
		{"many words", HotPages{1, 1 << 31, 0, 1}, []piece{{private, 0, 1}, {private, 64, 1}, {object, 20, 1}}},
	} {
		if got := e.hotPieces([]HotPages{c.in}); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v instead of %v", c.name, got, c.want)
		}
	}
	for _, bad := range []HotPages{{1, 0, 0, 1}, {1, 1, 0, 0}, {1, 1, pageSize, 1}, {1, 2, 1<<56 - wordSize, 1}, {1, 1, 1 << 60, 1}} {
		if err := e.Hot([]HotPages{bad}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if err := e.Hot(make([]HotPages, MaxHot+1)); !errors.Is(err, unix.E2BIG) {
		t.Error(err)
	}
}
