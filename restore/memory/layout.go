package memory

import "sort"

// region is a range of the source: the object that pages come from. Where a page of it lies in which mm is the mms'
// layouts' business.
type region struct {
	task       uint32 // source task
	start      uint64 // source address
	pages      int
	wipeOnFork bool
	object     *object // of which it is all; nil: private

	views  []*view       // one for each mm that has, or had, pages of it
	flight *bitset       // pages that the bulk has asked for
	urgent map[int]*want // pages that a fault has asked for
	copied *copiedRegion // nil: nothing of it is in the buffer
}

// view is what one mm has of one region: a page whose bit is set was filled or dropped, and will never be taken again.
type view struct {
	mm     *mm
	region *region
	taken  *bitset
	data   *bitset // filled with the source's bytes and not dropped since: what the final scan must find
}

// segment is a range of an mm that shows pages of a region from off on; a nil region is registered memory without
// contents: what is missing there is zero.
type segment struct {
	start, end uint64
	r          *region
	off        int
}

func (s segment) page(addr uint64) int { return s.off + int((addr-s.start)/pageSize) }

// part is what of s lies in [start, end), which must overlap it.
func (s segment) part(start, end uint64) segment {
	start, end = max(start, s.start), min(end, s.end)
	return segment{start: start, end: end, r: s.r, off: s.page(start)}
}

func (s segment) joins(n segment) bool {
	return s.end == n.start && s.r == n.r && (s.r == nil || s.page(s.end) == n.off)
}

// layout is an mm's segments, sorted, not overlapping, neighbours joined.
type layout struct{ segs []segment }

func (l *layout) clone() layout { return layout{segs: append([]segment(nil), l.segs...)} }

// from is the index of the first segment that ends behind addr.
func (l *layout) from(addr uint64) int {
	return sort.Search(len(l.segs), func(i int) bool { return l.segs[i].end > addr })
}

// find is the segment that holds addr.
func (l *layout) find(addr uint64) (segment, bool) {
	if i := l.from(addr); i < len(l.segs) && l.segs[i].start <= addr {
		return l.segs[i], true
	}
	return segment{}, false
}

// parts are the pieces in [start, end).
func (l *layout) parts(start, end uint64) []segment {
	var out []segment
	for i := l.from(start); i < len(l.segs) && l.segs[i].start < end; i++ {
		out = append(out, l.segs[i].part(start, end))
	}
	return out
}

// cut takes [start, end) out and returns the pieces.
func (l *layout) cut(start, end uint64) []segment {
	if start >= end {
		return nil
	}
	i := l.from(start)
	j := i
	var out, keep []segment
	for ; j < len(l.segs) && l.segs[j].start < end; j++ {
		s := l.segs[j]
		out = append(out, s.part(start, end))
		if s.start < start {
			keep = append(keep, s.part(s.start, start))
		}
		if s.end > end {
			keep = append(keep, s.part(end, s.end))
		}
	}
	if i == j {
		return nil
	}
	l.segs = append(l.segs[:i:i], append(keep, l.segs[j:]...)...)
	return out
}

// put inserts s, cutting out what was there.
func (l *layout) put(s segment) (was []segment) {
	if s.start >= s.end {
		return nil
	}
	was = l.cut(s.start, s.end)
	i := l.from(s.start)
	if i < len(l.segs) && s.joins(l.segs[i]) {
		s.end = l.segs[i].end
		l.segs = append(l.segs[:i], l.segs[i+1:]...)
	}
	if i > 0 && l.segs[i-1].joins(s) {
		l.segs[i-1].end = s.end
		return was
	}
	l.segs = append(l.segs, segment{})
	copy(l.segs[i+1:], l.segs[i:])
	l.segs[i] = s
	return was
}

// move is mremap: the pieces of [from, from+length) go to to; registered memory without contents stays behind, which
// the UNMAP event that follows all but MREMAP_DONTUNMAP takes away. It returns what was at the destination.
func (l *layout) move(from, to, length uint64) (was []segment) {
	parts := l.cut(from, from+length)
	was = l.cut(to, to+length)
	l.put(segment{start: to, end: to + length})
	for _, p := range parts {
		l.put(segment{start: p.start - from + to, end: p.end - from + to, r: p.r, off: p.off})
	}
	// The kernel never moves to a range that overlaps the old one.
	l.put(segment{start: from, end: from + length})
	for _, p := range parts {
		if p.r != nil && p.r.object != nil {
			l.put(p) // MREMAP_DONTUNMAP leaves the object there
		}
	}
	return was
}
