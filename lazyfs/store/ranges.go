package store

import "slices"

// span is a range of bytes.
type span struct{ off, end int64 }

// ranges are spans in order that neither meet nor overlap.
type ranges []span

// add puts a span in, joined with those that it meets.
func (r *ranges) add(off, end int64) {
	if end <= off {
		return
	}
	s := *r
	i, _ := slices.BinarySearchFunc(s, off, func(x span, off int64) int { // the first that ends at off or behind it
		if x.end < off {
			return -1
		}
		return 1
	})
	j := i
	for j < len(s) && s[j].off <= end {
		off, end = min(off, s[j].off), max(end, s[j].end)
		j++
	}
	*r = slices.Replace(s, i, j, span{off, end})
}

// size is how many bytes below limit they hold.
func (r ranges) size(limit int64) (n int64) {
	for _, x := range r {
		n += max(0, min(x.end, limit)-x.off)
	}
	return n
}
