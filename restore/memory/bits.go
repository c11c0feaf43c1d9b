package memory

import "math/bits"

const (
	chunkWords = 512
	chunkBits  = 64 * chunkWords // 128 MB of memory
)

type chunk [chunkWords]uint64

// full stands for every chunk whose bits are all set. It is never written.
var full = func() *chunk {
	c := &chunk{}
	for i := range c {
		c[i] = ^uint64(0)
	}
	return c
}()

// bitset holds one bit a page of a region, and how many are not set. A chunk is nil while nothing in it is set, and
// shared when everything is: regions of terabytes, of which few pages exist, are common.
type bitset struct {
	chunks []*chunk
	n      int
	left   int
}

func newBitset(n int) *bitset {
	return &bitset{chunks: make([]*chunk, (n+chunkBits-1)/chunkBits), n: n, left: n}
}

func (b *bitset) clone() *bitset {
	c := &bitset{chunks: append([]*chunk(nil), b.chunks...), n: b.n, left: b.left}
	for i, k := range c.chunks {
		if k != nil && k != full {
			own := *k
			c.chunks[i] = &own
		}
	}
	return c
}

// word holds the bits of pages [64·i, 64·i+64).
func (b *bitset) word(i int) uint64 {
	if c := b.chunks[i/chunkWords]; c != nil {
		return c[i%chunkWords]
	}
	return 0
}

func (b *bitset) has(i int) bool { return b.word(i/64)>>(i%64)&1 != 0 }

// size is the number of pages in chunk i.
func (b *bitset) size(i int) int { return min(chunkBits, b.n-i*chunkBits) }

// mask has the bits of [i, j) that lie in i's word, n of them.
func mask(i, j int) (m uint64, n int) {
	n = min(64-i%64, j-i)
	return ^uint64(0) >> (64 - n) << (i % 64), n
}

// set sets [i, j) and returns how many were not set before.
func (b *bitset) set(i, j int) (added int) {
	for i < j {
		k := i / chunkBits
		end := min(j, (k+1)*chunkBits)
		c := b.chunks[k]
		switch {
		case c == full:
		case c == nil && i == k*chunkBits && end-i == b.size(k):
			b.chunks[k] = full
			added += end - i
		default:
			if c == nil {
				c = &chunk{}
				b.chunks[k] = c
			}
			for p := i; p < end; {
				m, n := mask(p, end)
				w := &c[p/64%chunkWords]
				added += bits.OnesCount64(m &^ *w)
				*w |= m
				p += n
			}
		}
		i = end
	}
	b.left -= added
	return added
}

// clear clears [i, j).
func (b *bitset) clear(i, j int) {
	for i < j {
		k := i / chunkBits
		end := min(j, (k+1)*chunkBits)
		c := b.chunks[k]
		switch {
		case c == nil:
		case c == full && i == k*chunkBits && end-i == b.size(k):
			b.chunks[k] = nil
			b.left += end - i
		default:
			if c == full {
				own := *full
				c = &own
				b.chunks[k] = c
			}
			for p := i; p < end; {
				m, n := mask(p, end)
				w := &c[p/64%chunkWords]
				b.left += bits.OnesCount64(m & *w)
				*w &^= m
				p += n
			}
		}
		i = end
	}
}

// nextClear is the first page in [i, j) that is not set, or j.
func (b *bitset) nextClear(i, j int) int {
	for i < j {
		if b.chunks[i/chunkBits] == full {
			i = (i/chunkBits + 1) * chunkBits
			continue
		}
		if w := ^b.word(i/64) >> (i % 64); w != 0 {
			return min(i+bits.TrailingZeros64(w), j)
		}
		i = (i/64 + 1) * 64
	}
	return j
}

// nextSet is the first page in [i, j) that is set, or j.
func (b *bitset) nextSet(i, j int) int {
	for i < j {
		if b.chunks[i/chunkBits] == nil {
			i = (i/chunkBits + 1) * chunkBits
			continue
		}
		if w := b.word(i/64) >> (i % 64); w != 0 {
			return min(i+bits.TrailingZeros64(w), j)
		}
		i = (i/64 + 1) * 64
	}
	return j
}

// nextMissing is the first page from i on that one of the views misses and that is not in flight, or the end.
func nextMissing(views []*view, flight *bitset, i int) int {
	for i < flight.n {
		k := i / chunkBits
		if !open(views, k) || flight.chunks[k] == full {
			i = (k + 1) * chunkBits
			continue
		}
		for end := min((k+1)*chunkBits, flight.n); i < end; {
			all := ^uint64(0)
			for _, v := range views {
				all &= v.taken.word(i / 64)
			}
			if w := ^(all | flight.word(i/64)) >> (i % 64); w != 0 {
				return min(i+bits.TrailingZeros64(w), flight.n)
			}
			i = (i/64 + 1) * 64
		}
	}
	return flight.n
}

// open says whether an mm misses a page in chunk k.
func open(views []*view, k int) bool {
	for _, v := range views {
		if v.taken.chunks[k] != full {
			return true
		}
	}
	return false
}
