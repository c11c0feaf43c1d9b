package ahead

import (
	"maps"
	"math/bits"
	"slices"
)

const (
	pageSize   = 4096
	wordSize   = 64 * pageSize
	chunkWords = 512
	chunkSize  = chunkWords * wordSize // 128 MB
)

// pages is a set of pages of an address space, sparse as that is.
type pages struct {
	chunks map[uint64]*[chunkWords]uint64 // by address / chunkSize; a chunk that is there has a page, or had one
	n      int
}

func newPages() *pages { return &pages{chunks: map[uint64]*[chunkWords]uint64{}} }

// each calls f with each word that holds pages of s, and the bits of these. A chunk that is not there is made if
// grow is set, else passed over.
func (p *pages) each(s span, grow bool, f func(w *uint64, mask uint64)) {
	for at := s.start; at < s.end; {
		k := at / chunkSize
		c := p.chunks[k]
		if c == nil {
			if !grow {
				at = (k + 1) * chunkSize
				continue
			}
			c = &[chunkWords]uint64{}
			p.chunks[k] = c
		}
		first := at / pageSize % 64
		n := min(64-first, (s.end-at)/pageSize)
		f(&c[at/wordSize%chunkWords], ^uint64(0)>>(64-n)<<first)
		at += n * pageSize
	}
}

func (p *pages) set(s span) {
	p.each(s, true, func(w *uint64, mask uint64) {
		p.n += bits.OnesCount64(mask &^ *w)
		*w |= mask
	})
}

func (p *pages) clear(s span) {
	p.each(s, false, func(w *uint64, mask uint64) {
		p.n -= bits.OnesCount64(mask & *w)
		*w &^= mask
	})
}

// and leaves only what is in o, too.
func (p *pages) and(o *pages) {
	for k, c := range p.chunks {
		d := o.chunks[k]
		for i, w := range c {
			m := uint64(0)
			if d != nil {
				m = d[i]
			}
			p.n -= bits.OnesCount64(w &^ m)
			c[i] = w & m
		}
	}
}

// has says whether the page at addr is in p.
func (p *pages) has(addr uint64) bool {
	c := p.chunks[addr/chunkSize]
	return c != nil && c[addr/wordSize%chunkWords]>>(addr/pageSize%64)&1 != 0
}

// missing is how many pages of s are not in p.
func (p *pages) missing(s span) (n uint64) {
	n = (s.end - s.start) / pageSize
	p.each(s, false, func(w *uint64, mask uint64) { n -= uint64(bits.OnesCount64(mask & *w)) })
	return n
}

// keep leaves only what is in l.
func (p *pages) keep(l spans) {
	at := uint64(0)
	for _, s := range l {
		p.drop(span{at, s.start})
		at = s.end
	}
	p.drop(span{at, 1 << 63})
}

// drop is clear for spans that may be far larger than what is there.
func (p *pages) drop(s span) {
	for k := range p.chunks {
		if lo, hi := max(s.start, k*chunkSize), min(s.end, (k+1)*chunkSize); lo < hi {
			p.clear(span{lo, hi})
		}
	}
}

// words calls f with each word that is not empty, in order of address.
func (p *pages) words(f func(addr, mask uint64) error) error {
	for _, k := range slices.Sorted(maps.Keys(p.chunks)) {
		for i, w := range p.chunks[k] {
			if w != 0 {
				if err := f(k*chunkSize+uint64(i)*wordSize, w); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
