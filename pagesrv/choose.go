package pagesrv

import (
	"fmt"
	"sync"
	"syscall"
	"time"
)

// What ServerOptions.Compress may be.
const (
	CompressAuto = "auto" // also if empty
	CompressNone = "none"
	CompressS2   = "s2"
	CompressZstd = "zstd"
)

// CheckCompress says whether s is one of them.
func CheckCompress(s string) error {
	switch s {
	case "", CompressAuto, CompressNone, CompressS2, CompressZstd:
		return nil
	}
	return fmt.Errorf("compress by %q: auto, none, s2 or zstd: %w", s, syscall.EINVAL)
}

const (
	sampleEvery = 16       // answers of a megabyte
	sampleSize  = 64 << 10 // bytes of one

	// margin is how much less time something must take to be chosen: a measured time is one of the past.
	margin = 0.85
	// unpackCost is what taking apart costs of what putting together does.
	unpackCost = 0.5
)

// chooser decides for each bulk answer whether it is compressed, by what the line and the CPU have given until now. Sending has its price
// (encryption and waiting for the line, and for --bwlimit), packing too; that is chosen which is cheapest for a byte of memory, and nothing unless it
// saves for sure. What is not chosen is tried on a sample now and then.
type chooser struct {
	fixed packing
	auto  bool

	mu    sync.Mutex
	n     int
	send  mean // ns a byte on the line
	packs map[packing]*packCost
}

// packCost is what a packing costs and does.
type packCost struct {
	cost  mean // ns a byte of memory
	ratio mean // bytes on the line for one of memory
}

func newChooser(mode string) *chooser {
	c := &chooser{packs: map[packing]*packCost{packedS2: {}, packedZstd: {}}}
	switch mode {
	case CompressNone:
	case CompressS2:
		c.fixed = packedS2
	case CompressZstd:
		c.fixed = packedZstd
	default:
		c.auto = true
	}
	return c
}

// next says how the next answer is packed, and whether the others are tried on a sample of it. The peer knows some packings.
func (c *chooser) next(known packing) (how packing, sample bool) {
	if known == 0 {
		return unpacked, false
	}
	if !c.auto {
		return c.fixed & known, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.best() & known, c.n%sampleEvery == 1
}

// best is the cheapest by what is known.
func (c *chooser) best() packing {
	best, price := unpacked, margin*c.send.value
	for _, how := range []packing{packedS2, packedZstd} {
		if p := c.packs[how]; p.cost.n > 0 && c.send.n > 0 {
			if now := (1+unpackCost)*p.cost.value + p.ratio.value*c.send.value; now < price {
				best, price = how, now
			}
		}
	}
	return best
}

// sent notes that n bytes took d on the line.
func (c *chooser) sent(n int, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send.add(float64(d) / float64(max(n, 1)))
}

// packed notes what packing did.
func (c *chooser) packed(how packing, in, out int, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.packs[how]
	p.cost.add(float64(d) / float64(in))
	p.ratio.add(float64(out) / float64(in))
}

// mean is one of the last values.
type mean struct {
	value float64
	n     int
}

func (m *mean) add(v float64) {
	m.n++
	m.value += (v - m.value) / float64(min(m.n, 8))
}
