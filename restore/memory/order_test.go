package memory

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// At page p of the tests' address space.
func at(p int) uint64 { return 1<<30 + uint64(p)*pageSize }

// space is a small model of an mm: what the kernel does to mappings, in the order in which it does it.
type space struct {
	vma     []int // 0: not registered
	content []int // page of the source, or -1
	vmas    int
}

func newSpace(n int) *space {
	s := &space{vma: make([]int, n), content: make([]int, n)}
	for i := range s.content {
		s.content[i] = -1
	}
	return s
}

// fill makes a VMA with contents in [from, to).
func (s *space) fill(from, to int) {
	s.vmas++
	for i := from; i < to; i++ {
		s.vma[i], s.content[i] = s.vmas, i
	}
}

func (s *space) free(from, to int) bool {
	return to <= len(s.vma) && !slices.ContainsFunc(s.vma[from:to], func(v int) bool { return v != 0 })
}

func (s *space) unmap(from, to int) event {
	for i := from; i < to; i++ {
		s.vma[i], s.content[i] = 0, -1
	}
	return event{kind: evUnmap, start: at(from), end: at(to)}
}

// move is mremap of n pages to a free place, growing by g there; the events are posted in this order.
func (s *space) move(from, to, n, g int, leave bool) []event {
	s.vmas++
	for i := range n {
		s.vma[to+i], s.content[to+i] = s.vmas, s.content[from+i]
		s.content[from+i] = -1
		if !leave {
			s.vma[from+i] = 0
		}
	}
	for i := n; i < n+g; i++ {
		s.vma[to+i], s.content[to+i] = s.vmas, -1
	}
	evs := []event{{kind: evRemap, from: at(from), to: at(to), len: uint64(n) * pageSize}}
	if !leave {
		evs = append(evs, event{kind: evUnmap, start: at(from), end: at(from + n)})
	}
	return evs
}

func (s *space) registered(addr, length uint64) (bool, error) {
	i, n := int((addr-at(0))/pageSize), int(length/pageSize)
	if addr < at(0) || i+n > len(s.vma) || s.vma[i] == 0 {
		return false, nil
	}
	for _, v := range s.vma[i : i+n] {
		if v != s.vma[i] {
			return false, nil
		}
	}
	return true, nil
}

// layoutOf is what the engine would know.
func (s *space) layoutOf(r *region) *layout {
	l := &layout{}
	for i, v := range s.vma {
		switch {
		case v == 0:
		case s.content[i] < 0:
			l.put(segment{start: at(i), end: at(i + 1)})
		default:
			l.put(segment{start: at(i), end: at(i + 1), r: r, off: s.content[i]})
		}
	}
	return l
}

// replay applies the batch to the layout as the engine does, and says where the contents differ from the truth.
func replay(before *layout, batch []event, now *space) (fits bool, diff string) {
	ops := operations(batch)
	order, fits, err := orderOps(before, ops, now.registered)
	if err != nil {
		return false, err.Error()
	}
	l := before.clone()
	for _, i := range order {
		for _, k := range ops[i].events {
			switch ev := batch[k]; ev.kind {
			case evRemap:
				l.move(ev.from, ev.to, ev.len)
			case evUnmap:
				l.cut(ev.start, ev.end)
			}
		}
	}
	for i, want := range now.content {
		got := -1
		if s, ok := l.find(at(i)); ok && s.r != nil {
			got = s.page(at(i))
		}
		if got != want {
			diff += fmt.Sprintf("page %d shows %d, not %d; ", i, got, want)
		}
	}
	return fits, diff
}

// TestOrder has the cases in which reading order is wrong, and those where it must be kept.
func TestOrder(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup func(s *space)
		do    func(s *space) []event // as done
		read  []int                  // as read
	}{
		{
			"moved to where another thread has just unmapped",
			func(s *space) { s.fill(0, 8); s.fill(20, 28) },
			func(s *space) []event { return append([]event{s.unmap(20, 28)}, s.move(0, 20, 8, 0, false)...) },
			[]int{1, 2, 0},
		},
		{
			"the same, the old range's unmap read last",
			func(s *space) { s.fill(0, 8); s.fill(20, 28) },
			func(s *space) []event { return append([]event{s.unmap(20, 28)}, s.move(0, 20, 8, 0, false)...) },
			[]int{1, 0, 2},
		},
		{
			"moved to the middle of unmapped plain memory and ours",
			func(s *space) { s.fill(0, 4); s.fill(10, 14) },
			func(s *space) []event { return append([]event{s.unmap(10, 30)}, s.move(0, 20, 4, 0, false)...) },
			[]int{1, 0, 2},
		},
		{
			"moved away, then another one moved there: the unmap of the first comes last",
			func(s *space) { s.fill(0, 8); s.fill(10, 18) },
			func(s *space) []event {
				return append(s.move(0, 30, 8, 0, false), s.move(10, 0, 8, 0, false)...)
			},
			[]int{0, 2, 3, 1},
		},
		{
			"the second move is read first",
			func(s *space) { s.fill(0, 8); s.fill(10, 18) },
			func(s *space) []event {
				return append(s.move(0, 30, 8, 0, false), s.move(10, 0, 8, 0, false)...)
			},
			[]int{2, 0, 1, 3},
		},
		{
			"a chain read backwards",
			func(s *space) { s.fill(0, 8) },
			func(s *space) []event {
				return append(s.move(0, 30, 8, 0, false), s.move(30, 50, 8, 0, false)...)
			},
			[]int{2, 0, 1, 3},
		},
		{
			"moved, then unmapped there",
			func(s *space) { s.fill(0, 8) },
			func(s *space) []event { return append(s.move(0, 30, 8, 0, false), s.unmap(32, 36)) },
			[]int{0, 2, 1},
		},
		{
			"moved, then unmapped there, read first",
			func(s *space) { s.fill(0, 8) },
			func(s *space) []event { return append(s.move(0, 30, 8, 0, false), s.unmap(30, 38)) },
			[]int{2, 0, 1},
		},
		{
			"moved, its end cut off, grown again: the end is zero",
			func(s *space) { s.fill(0, 8) },
			func(s *space) []event {
				evs := append(s.move(0, 30, 8, 0, false), s.unmap(34, 38))
				for i := 34; i < 38; i++ {
					s.vma[i] = s.vma[33]
				}
				return evs
			},
			[]int{0, 1, 2},
		},
		{
			"a grown end moved away by itself",
			func(s *space) { s.fill(0, 2) },
			func(s *space) []event {
				return append(s.move(0, 30, 2, 6, false), s.move(34, 50, 4, 0, false)...)
			},
			[]int{0, 1, 2, 3},
		},
		{
			"left behind, then moved over",
			func(s *space) { s.fill(0, 8); s.fill(10, 18) },
			func(s *space) []event {
				return append(append(s.move(0, 30, 8, 0, true), s.unmap(0, 8)), s.move(10, 0, 8, 0, false)...)
			},
			[]int{0, 2, 1, 3},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSpace(64)
			c.setup(s)
			before := s.layoutOf(&region{pages: 64})
			done := c.do(s)
			batch := make([]event, len(done))
			for i, k := range c.read {
				batch[i] = done[k]
			}
			if fits, diff := replay(before, batch, s); diff != "" || !fits {
				t.Errorf("fits %v: %s", fits, diff)
			}
		})
	}
}

// TestOrderRandom lets a few threads move and unmap at random, each event delayed by up to two others, and wants the
// layout to be as it is, also where memory grows, in place or moving.
func TestOrderRandom(t *testing.T) {
	for _, c := range []struct {
		name          string
		delay, growth int
	}{{"delays", 2, 0}, {"growth", 0, 6}, {"both", 2, 6}} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(3000) {
				r := rand.New(rand.NewPCG(seed, 1))
				s := newSpace(48)
				s.fill(2, 14)
				s.fill(20, 32)
				before := s.layoutOf(&region{pages: 48})
				batch := randomBatch(r, s, c.delay, c.growth)
				if fits, diff := replay(before, batch, s); diff != "" || !fits {
					t.Fatalf("seed %d: fits %v: %s\n%v", seed, fits, diff, batch)
				}
			}
		})
	}
}

// randomBatch does a few operations and returns their events as they could be read.
func randomBatch(r *rand.Rand, s *space, delay, growth int) []event {
	type timed struct {
		ev   event
		when int
	}
	var evs []timed
	for i := range 2 + r.IntN(4) {
		var done []event
		from := r.IntN(40)
		if s.vma[from] == 0 {
			continue
		}
		n := 1
		for n < 6 && s.vma[from+n] == s.vma[from] && from+n < 46 {
			n++
		}
		switch r.IntN(5) {
		case 0, 1:
			done = []event{s.unmap(from, from+n)}
		case 2, 3:
			to, g := r.IntN(40), r.IntN(growth+1)
			if to+n+g > 48 || !s.free(to, to+n+g) {
				continue
			}
			done = s.move(from, to, n, g, r.IntN(4) == 0)
		case 4:
			for k := from + n; growth > 0 && k < 48 && s.vma[k] == 0 && k < from+n+growth; k++ {
				s.vma[k] = s.vma[k-1]
			}
		}
		when := 3 * i
		for _, ev := range done {
			when += r.IntN(3*delay + 1)
			evs = append(evs, timed{ev, when})
		}
	}
	slices.SortStableFunc(evs, func(a, b timed) int { return a.when - b.when })
	var batch []event
	for _, e := range evs {
		batch = append(batch, e.ev)
	}
	return batch
}
