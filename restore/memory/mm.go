package memory

import (
	"fmt"
	"sort"
	"time"
)

// mm is one address space: a restored task's, or that of a child that it forked meanwhile.
type mm struct {
	id      uint32 // pid in the capsule; 0: a child whose pid nobody has asked for
	fd      *uffd
	child   bool
	own     *object // this process's own mapping of an object: no process of the tree has it
	shares  bool    // has, or had, objects mapped
	scene   *scene  // what was under way just before its events were read; nil: not looked at
	lay     layout
	views   map[*region]*view
	missing int // pages in all of them

	// batch holds the events that were read since the mappings were last seen at rest; the layout is that before them.
	// While it is not empty, or settled is false for another reason, nothing may be filled.
	batch   []event
	round   int // reads of the descriptor that brought something
	settled bool

	forkHeld time.Time // since then its events are left unread for want of memory; zero: they are read
	forkTold bool      // it is known to be a fork
	forkLate bool      // that has lasted too long

	pages   *pages // of the process that was seen to have this mm; nil: not seen yet
	guesses int

	waiting map[uint64]time.Time // addresses of threads whose fault was read, since when
	parked  []parked

	byRegion map[*region][]segment // sorted by offset; nil: to be made again
}

// event is a read one. FORK carries the child's userfaultfd.
type event struct {
	kind       uint8
	start, end uint64 // UNMAP, REMOVE
	from, to   uint64 // REMAP, length in len
	len        uint64
	child      *uffd
	round      int // the read that brought it
}

func (ev event) String() string {
	switch ev.kind {
	case evRemap:
		return fmt.Sprintf("%d:remap %#x-%#x to %#x", ev.round, ev.from, ev.from+ev.len, ev.to)
	case evUnmap:
		return fmt.Sprintf("%d:unmap %#x-%#x", ev.round, ev.start, ev.end)
	case evRemove:
		return fmt.Sprintf("%d:remove %#x-%#x", ev.round, ev.start, ev.end)
	}
	return fmt.Sprintf("%d:fork", ev.round)
}

// parked is a run that came while its mm was not settled.
type parked struct {
	r    *region
	page int
	run  Run
	data []byte
}

func newMM(id uint32, u *uffd) *mm {
	return &mm{id: id, fd: u, views: map[*region]*view{}, waiting: map[uint64]time.Time{}}
}

// Lacked says that a process which has ended missed pages then, or missed some while it dumped core, which waits for nothing.
func (e *Engine) Lacked(pid uint32) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.mms {
		if m.id == pid {
			return m.missing > 0
		}
	}
	return e.gone[pid]
}

// adopt makes m a holder of pages of r.
func (m *mm) adopt(r *region, taken, data *bitset) {
	v := &view{mm: m, region: r, taken: taken, data: data}
	m.views[r] = v
	m.missing += taken.left
	r.views = append(r.views, v)
}

// take marks pages as taken and returns how many were not.
func (v *view) take(i, j int) int {
	n := v.taken.set(i, j)
	v.mm.missing -= n
	return n
}

// changed forgets what was computed from the layout.
func (m *mm) changed() { m.byRegion = nil }

// show calls f with each piece of the mm that shows pages of [page, page+n) of r, in address order of the region.
func (m *mm) show(r *region, page, n int, f func(addr uint64, page, n int)) {
	if m.byRegion == nil {
		m.byRegion = map[*region][]segment{}
		for _, s := range m.lay.segs {
			if s.r != nil {
				m.byRegion[s.r] = append(m.byRegion[s.r], s)
			}
		}
		for _, l := range m.byRegion {
			sort.Slice(l, func(i, j int) bool { return l[i].off < l[j].off })
		}
	}
	l := m.byRegion[r]
	i := sort.Search(len(l), func(i int) bool { return l[i].page(l[i].end) > page })
	for ; i < len(l) && l[i].off < page+n; i++ {
		first, last := max(page, l[i].off), min(page+n, l[i].page(l[i].end))
		f(l[i].start+uint64(first-l[i].off)*pageSize, first, last-first)
	}
}

// drop marks pages as taken that will never be filled: their contents were thrown away.
func (m *mm) drop(parts []segment) (n int) {
	for _, s := range parts {
		if s.r == nil {
			continue
		}
		v := m.views[s.r]
		if v == nil {
			continue // an object's page stays: see removed
		}
		end := s.page(s.end)
		n += v.take(s.off, end)
		v.data.clear(s.off, end)
	}
	return n
}

// forkTo makes the layout and the bits of a child as the parent's are now.
func (m *mm) forkTo(u *uffd) *mm {
	c := newMM(0, u)
	c.child, c.shares = true, m.shares
	c.lay = m.lay.clone()
	for r, v := range m.views {
		taken, data := v.taken.clone(), v.data.clone()
		if r.wipeOnFork {
			taken.set(0, r.pages)
			data.clear(0, r.pages)
		}
		c.adopt(r, taken, data)
	}
	return c
}
