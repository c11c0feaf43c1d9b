package memory

import (
	"math/bits"
	"time"
)

// Stats is what an engine did.
type Stats struct {
	Faults       uint64 // read from the userfaultfds
	ZeroFaults   uint64 // answered with zeros at once
	FaultP50us   uint64 // from the event read to the thread woken
	FaultP99us   uint64
	Stall        time.Duration // in which threads have waited for pages, added up; those that wait now included
	Prefetched   uint64        // pages, or steps of a stride, that were to come before their touch
	PrefetchHits uint64        // of those: passed without a fault
	PagesCopied  uint64        // into all mms
	BytesCopied  uint64
	ZeroPages    uint64
	GuardPages   uint64 // of the source
	DroppedPages uint64 // unmapped or thrown away before they came
	ErrorPages   uint64 // that the source could not read; asked again
	StrayPages   uint64 // of shared memory, made by somebody else before they came: an error
	UnsureDrops  uint64 // events of shared memory that could not be told to drop or to keep
	LostPages    uint64 // fills that found no memory: errors of the layout, each is logged
	GuardedPages uint64 // made guards by the process before they came
	AbsentPages  uint64 // filled, and found missing at the end without an event that explains it
	Unproven     uint64 // mms whose pages could not be looked at at the end: their process is not known
	Failures     uint64 // wants asked again
	Forks        uint64
	ForksHeld    uint64 // that waited for memory
	Events       uint64 // REMAP, UNMAP and REMOVE
	Misfits      uint64 // batches of events that no order fitted wholly
	Left         uint64 // pages missing in all mms
	Outstanding  int    // wants not answered
	Spaces       int    // mms with an open userfaultfd
	CopiedPages  uint64 // that came before the freeze
	HotPages     uint64 // asked for first, because the source has said that they are in use
	Drained      bool
}

type counters struct {
	faults, zeroFaults, prefetched, prefetchHits, pagesCopied, pagesZero, guards, dropped, errorPages, lost, failures, forks, forksHeld, events, misfits, guarded, absent, unproven, strays, unsure, copied, hot uint64
	latency                                                                                                                                                                                                      histogram
	drained                                                                                                                                                                                                      bool
}

// Stats counts up to now.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := &e.stats
	s := Stats{
		Faults: c.faults, ZeroFaults: c.zeroFaults, FaultP50us: c.latency.quantile(0.5), FaultP99us: c.latency.quantile(0.99),
		Prefetched: c.prefetched, PrefetchHits: c.prefetchHits,
		PagesCopied: c.pagesCopied, BytesCopied: c.pagesCopied * pageSize, ZeroPages: c.pagesZero, GuardPages: c.guards,
		DroppedPages: c.dropped, ErrorPages: c.errorPages, LostPages: c.lost, Failures: c.failures, Forks: c.forks, ForksHeld: c.forksHeld,
		Events: c.events, Misfits: c.misfits, StrayPages: c.strays, UnsureDrops: c.unsure, CopiedPages: c.copied, HotPages: c.hot, GuardedPages: c.guarded, AbsentPages: c.absent, Unproven: c.unproven, Outstanding: len(e.wants), Spaces: len(e.mms), Drained: c.drained,
	}
	s.Stall = c.latency.sum
	now := time.Now()
	for _, m := range e.mms {
		s.Left += uint64(m.missing)
		for _, since := range m.waiting {
			s.Stall += now.Sub(since)
		}
	}
	for _, t := range e.tasks {
		if t.added {
			continue
		}
		for _, r := range t.regions {
			s.Left += uint64(r.pages)
		}
	}
	return s
}

// histogram counts durations in buckets of an eighth of a power of two of microseconds.
type histogram struct {
	n       uint64
	sum     time.Duration
	buckets [8 * 40]uint64
}

func (h *histogram) add(d time.Duration) {
	us := uint64(max(d.Microseconds(), 0))
	h.n++
	h.sum += d
	h.buckets[bucket(us)]++
}

// bucket: below 8 each value has its own, above the top three bits behind the first decide.
func bucket(us uint64) int {
	if us < 8 {
		return int(us)
	}
	l := bits.Len64(us)
	return min((l-3)*8+int(us>>(l-4)&7), 8*40-1)
}

// quantile is the lower end of the bucket that holds it.
func (h *histogram) quantile(q float64) uint64 {
	if h.n == 0 {
		return 0
	}
	rank, sum := uint64(q*float64(h.n-1)), uint64(0)
	for i, c := range h.buckets {
		if sum += c; sum > rank {
			if i < 8 {
				return uint64(i)
			}
			return uint64(8+i%8) << (i/8 - 1)
		}
	}
	return 0
}
