package memory

import "slices"

// op is what one system call did to the mappings: an event, or the REMAP of an mremap with the UNMAP of the old range
// that the same thread posts after it (all mremaps but MREMAP_DONTUNMAP have one). The kernel does both at once.
type op struct {
	kind       uint8
	from, end  uint64 // the range; evRemap: the old one
	to, length uint64 // evRemap: the new one
	leaves     bool   // evRemap: the old range stays registered
	events     []int  // indexes into the batch
}

// maxOrders bounds the search; what it found best until then is taken.
const maxOrders = 2000

// orderer looks for the order in which the operations of a batch were done. It knows the layout before, and can ask
// what is registered now, when nothing is changing. An order fits if
//   - an mremap never moves to where something is;
//   - what is there at the end is registered;
//   - where an mremap moved to, and nothing is at the end, no registered VMA begins (unless it was cut there).
//
// Of several that fit that nearest to the order of reading is taken: operations on disjoint ranges keep it.
//
// More cannot be asked for: an mremap that grows a VMA in place posts no event, and that of one that moves tells the old
// length, so that memory which is gone by the events may be registered again, with zeros in it. What can go wrong then
// needs an mremap to a place that a munmap of other memory too has just freed, the event of that munmap delayed until
// after the mremap's was read, and a merge of the moved VMA with the one before it, all in one batch.
type orderer struct {
	before     *layout
	ops        []op
	registered func(addr, length uint64) (bool, error)

	asked  map[[2]uint64]bool
	best   []int
	cost   int
	orders int
	err    error
}

// Marks of a range that operations of the batch touch; what is in neither is not known.
var (
	there = &region{} // registered
	gone  = &region{} // taken away
)

// operations joins an mremap's two events.
func operations(batch []event) []op {
	used := make([]bool, len(batch))
	var ops []op
	for i, ev := range batch {
		if used[i] {
			continue
		}
		switch ev.kind {
		case evRemap:
			o := op{kind: evRemap, from: ev.from, end: ev.from + ev.len, to: ev.to, length: ev.len, leaves: true, events: []int{i}}
			for j := i + 1; j < len(batch); j++ {
				if u := batch[j]; !used[j] && u.kind == evUnmap && u.start == ev.from && u.end == ev.from+ev.len {
					used[j] = true
					o.leaves = false
					o.events = append(o.events, j)
					break
				}
			}
			ops = append(ops, o)
		case evFork:
			ops = append(ops, op{kind: evFork, events: []int{i}})
		default:
			ops = append(ops, op{kind: ev.kind, from: ev.start, end: ev.end, events: []int{i}})
		}
	}
	return ops
}

func (o *op) touches() [][2]uint64 {
	switch o.kind {
	case evRemap:
		return [][2]uint64{{o.from, o.end}, {o.to, o.to + o.length}}
	case evFork:
		return nil
	}
	return [][2]uint64{{o.from, o.end}}
}

func (o *op) meets(p *op) bool {
	for _, a := range o.touches() {
		for _, b := range p.touches() {
			if a[0] < b[1] && b[0] < a[1] {
				return true
			}
		}
	}
	return false
}

// orderOps is the order of the operations, forks left where they were read, as indexes into ops. fits is false if none
// was found that contradicts nothing. An error is the one of registered.
func orderOps(before *layout, ops []op, registered func(addr, length uint64) (bool, error)) (order []int, fits bool, err error) {
	order = make([]int, len(ops))
	for i := range order {
		order[i] = i
	}
	fits = true
	for _, g := range groups(ops) {
		s := orderer{before: before, registered: registered, asked: map[[2]uint64]bool{}}
		for _, i := range g {
			s.ops = append(s.ops, ops[i])
		}
		best, cost, err := s.search()
		if err != nil {
			return nil, false, err
		}
		fits = fits && cost == 0
		// The group's operations take the places that the group had.
		for k, i := range g {
			order[i] = g[best[k]]
		}
	}
	return order, fits, nil
}

// groups are the sets of operations that are connected by common ranges, those of one left out.
func groups(ops []op) [][]int {
	group := make([]int, len(ops))
	for i := range ops {
		group[i] = i
		for j := range i {
			if group[i] != group[j] && ops[i].meets(&ops[j]) {
				old, to := group[j], group[i]
				for k := range i {
					if group[k] == old {
						group[k] = to
					}
				}
			}
		}
	}
	members := map[int][]int{}
	for i, g := range group {
		members[g] = append(members[g], i)
	}
	var out [][]int
	for i, g := range group {
		if l := members[g]; l[0] == i && len(l) > 1 {
			out = append(out, l)
		}
	}
	return out
}

// start is what was there before of all that the operations touch.
func (s *orderer) start() (st layout) {
	for i := range s.ops {
		for _, r := range s.ops[i].touches() {
			for _, p := range s.before.parts(r[0], r[1]) {
				st.put(segment{start: p.start, end: p.end, r: there})
			}
		}
	}
	return st
}

func (s *orderer) search() ([]int, int, error) {
	s.cost = -1
	s.try(s.start(), nil, make([]bool, len(s.ops)), 0)
	return s.best, s.cost, s.err
}

// try extends the order by each operation that is left, in the order of reading.
func (s *orderer) try(st layout, order []int, used []bool, cost int) {
	if s.err != nil || s.cost == 0 || s.cost > 0 && cost >= s.cost || s.orders > maxOrders && s.cost >= 0 {
		return
	}
	if len(order) == len(s.ops) {
		s.orders++
		n, err := s.mismatches(&st)
		if err != nil {
			s.err = err
			return
		}
		if cost += n; s.cost < 0 || cost < s.cost {
			s.cost, s.best = cost, slices.Clone(order)
		}
		return
	}
	// First without a contradiction, then with: the search ends as soon as an order without any is found.
	for _, bad := range []bool{false, true} {
		for i := range s.ops {
			if used[i] {
				continue
			}
			if contradicts(&st, &s.ops[i]) != bad {
				continue
			}
			c := 0
			if bad {
				c = 1
			}
			next := st.clone()
			advance(&next, &s.ops[i])
			used[i] = true
			s.orders++
			s.try(next, append(order, i), used, cost+c)
			used[i] = false
		}
	}
}

// contradicts says whether o cannot have been done in the state st.
func contradicts(st *layout, o *op) bool {
	if o.kind != evRemap {
		return false
	}
	for _, p := range st.parts(o.to, o.to+o.length) {
		if p.r == there {
			return true
		}
	}
	return false
}

func advance(st *layout, o *op) {
	switch o.kind {
	case evRemap:
		mark := gone
		if o.leaves {
			mark = there
		}
		st.put(segment{start: o.from, end: o.end, r: mark})
		st.put(segment{start: o.to, end: o.to + o.length, r: there})
	case evUnmap:
		st.put(segment{start: o.from, end: o.end, r: gone})
	}
}

// mismatches compares what is left with what is registered, at both ends of each range.
func (s *orderer) mismatches(st *layout) (n int, err error) {
	for _, p := range st.segs {
		if p.r != there {
			continue
		}
		for _, a := range []uint64{p.start, p.end - pageSize} {
			r, err := s.ask(a, pageSize)
			if err != nil {
				return 0, err
			}
			if !r {
				n++
				break
			}
		}
	}
	for i := range s.ops {
		o := &s.ops[i]
		if o.kind != evRemap {
			continue
		}
		if p, ok := st.find(o.to); !ok || p.r == there || s.cutBefore(o.to) {
			continue
		}
		begins, err := s.begins(o.to)
		if err != nil {
			return 0, err
		}
		if begins {
			n++
		}
	}
	return n, nil
}

// cutBefore says whether an operation took away what ends at addr: a VMA that had grown over addr begins there now.
func (s *orderer) cutBefore(addr uint64) bool {
	for i := range s.ops {
		if o := &s.ops[i]; o.kind != evRemove && o.end == addr {
			return true
		}
	}
	return false
}

// begins says whether a registered VMA begins at addr.
func (s *orderer) begins(addr uint64) (bool, error) {
	r, err := s.ask(addr, pageSize)
	if err != nil || !r {
		return false, err
	}
	crosses, err := s.ask(addr-pageSize, 2*pageSize)
	return !crosses, err
}

func (s *orderer) ask(addr, length uint64) (bool, error) {
	k := [2]uint64{addr, length}
	if r, ok := s.asked[k]; ok {
		return r, nil
	}
	r, err := s.registered(addr, length)
	if err == nil {
		s.asked[k] = r
	}
	return r, err
}

// placeFork says behind how many of the ordered operations the fork was done: what the child has registered is what
// was there then. read is where it was read; it stays there if that fits as well as any other place.
func placeFork(before *layout, ops []op, order []int, read int, registered func(addr, length uint64) (bool, error)) (int, error) {
	s := orderer{before: before, ops: ops, registered: registered, asked: map[[2]uint64]bool{}}
	st := s.start()
	best, least := read, -1
	for k := 0; ; k++ {
		n, err := s.mismatches(&st)
		if err != nil {
			return read, err
		}
		d, b := k-read, best-read
		if least < 0 || n < least || n == least && d*d < b*b {
			best, least = k, n
		}
		if k == len(order) {
			return best, nil
		}
		advance(&st, &ops[order[k]])
	}
}
