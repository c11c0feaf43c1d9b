package ahead

// span is [start, end) of addresses.
type span struct{ start, end uint64 }

// spans are sorted and do not overlap.
type spans []span

// add appends a span that begins behind those that are there, or joins it to the last.
func (l spans) add(s span) spans {
	if n := len(l); n > 0 && l[n-1].end >= s.start {
		l[n-1].end = max(l[n-1].end, s.end)
		return l
	}
	return append(l, s)
}

// both is what is in l and in o.
func (l spans) both(o spans) (out spans) {
	for i, k := 0, 0; i < len(l) && k < len(o); {
		if lo, hi := max(l[i].start, o[k].start), min(l[i].end, o[k].end); lo < hi {
			out = out.add(span{lo, hi})
		}
		if l[i].end < o[k].end {
			i++
		} else {
			k++
		}
	}
	return out
}

// without is what is in l and not in o. Neighbours that were two in l stay two.
func (l spans) without(o spans) (out spans) {
	k := 0
	for _, s := range l {
		for ; k < len(o) && o[k].end <= s.start; k++ {
		}
		for i := k; i < len(o) && o[i].start < s.end; i++ {
			if o[i].start > s.start {
				out = append(out, span{s.start, o[i].start})
			}
			s.start = max(s.start, min(o[i].end, s.end))
		}
		if s.start < s.end {
			out = append(out, s)
		}
	}
	return out
}

// with is what is in l or in o.
func (l spans) with(o spans) (out spans) {
	for i, k := 0, 0; i < len(l) || k < len(o); {
		if k == len(o) || i < len(l) && l[i].start <= o[k].start {
			out = out.add(l[i])
			i++
		} else {
			out = out.add(o[k])
			k++
		}
	}
	return out
}
