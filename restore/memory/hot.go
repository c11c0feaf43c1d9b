package memory

import (
	"fmt"
	"math/bits"
	"sort"

	"golang.org/x/sys/unix"
)

// The source may have found out which pages are in use. The bulk asks for these first, in the order in which it names them, and for all else after that. Whether
// the list is right is a matter of speed alone: a page that it names is asked for as any other, and what is not memory of the tree is passed over.

// HotPages are those in the words of 64 pages from Addr on, of a source task, whose bits are set in Mask, which is the same for all Words.
type HotPages struct {
	Task  uint32
	Words uint32
	Addr  uint64
	Mask  uint64
}

// MaxHot is how many entries a list may have.
const MaxHot = 1 << 18

const (
	wordPages = 64
	wordSize  = wordPages * pageSize

	maxHotWords  = 1 << 20 // that are looked at one by one: 256 GB
	maxHotPieces = 1 << 20

	// hotGap is how many pages between two that are hot come along: asking once more costs more than so many bytes.
	hotGap = 3
)

// Check says whether the entry can be one.
func (h *HotPages) Check() error {
	if h.Addr%wordSize != 0 || h.Words == 0 || h.Mask == 0 || h.Addr >= 1<<56 || uint64(h.Words)*wordSize > 1<<56-h.Addr {
		return fmt.Errorf("hot pages: %d words at %#x: %w", h.Words, h.Addr, unix.EINVAL)
	}
	return nil
}

// Hot gives the engine the list, the hottest first. It comes once, before StartBulk.
func (e *Engine) Hot(list []HotPages) error {
	if len(list) > MaxHot {
		return fmt.Errorf("hot pages: %d entries: %w", len(list), unix.E2BIG)
	}
	for i := range list {
		if err := list[i].Check(); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.unlock()
	e.bulk.hot = e.hotPieces(list)
	return nil
}

// hotPieces finds the regions that the list's pages are of.
func (e *Engine) hotPieces(list []HotPages) (out []piece) {
	words := 0
	for _, h := range list {
		t := e.tasks[h.Task]
		if t == nil || IsObject(h.Task) {
			continue
		}
		if h.Mask == ^uint64(0) {
			out = e.addHot(out, t, h.Addr, h.Addr+uint64(h.Words)*wordSize)
			continue
		}
		for w := range uint64(h.Words) {
			if words++; words > maxHotWords {
				return out
			}
			for m := h.Mask; m != 0; {
				first := bits.TrailingZeros64(m)
				n := bits.TrailingZeros64(^(m >> first))
				m &= ^uint64(0) << (first + n)
				at := h.Addr + w*wordSize + uint64(first)*pageSize
				out = e.addHot(out, t, at, at+uint64(n)*pageSize)
			}
		}
	}
	return out
}

// addHot appends what of a range of a task is in its regions, private and shared, to pieces, the last of which may become longer.
func (e *Engine) addHot(out []piece, t *task, start, end uint64) []piece {
	add := func(r *region, page, n int) {
		if k := len(out); k > 0 {
			if p := &out[k-1]; p.r == r && page >= p.page+p.n && page-p.page-p.n <= hotGap {
				p.n = page + n - p.page
				return
			}
		}
		if len(out) < maxHotPieces {
			out = append(out, piece{r, page, n})
		}
	}
	i := sort.Search(len(t.regions), func(i int) bool { return t.regions[i].start+uint64(t.regions[i].pages)*pageSize > start })
	for ; i < len(t.regions) && t.regions[i].start < end; i++ {
		r := t.regions[i]
		lo, hi := max(start, r.start), min(end, r.start+uint64(r.pages)*pageSize)
		add(r, int((lo-r.start)/pageSize), int((hi-lo)/pageSize))
	}
	for _, s := range t.shared {
		o := e.tasks[s.Object]
		lo, hi := max(start, s.Start), min(end, s.End)
		if lo >= hi || o == nil || len(o.regions) != 1 {
			continue
		}
		r := o.regions[0]
		page := int((s.Offset + lo - s.Start) / pageSize)
		if n := min(int((hi-lo)/pageSize), r.pages-page); n > 0 {
			add(r, page, n)
		}
	}
	return out
}

// firstMissing is the first page of a piece that is missing and not under way, or one behind its end. Small pieces, which may be hundreds of thousands, are
// not looked beyond.
func (p *piece) firstMissing() int {
	if p.n > 4*wordPages {
		return nextMissing(p.r.views, p.r.flight, p.page)
	}
	i := p.page
	for i < p.page+p.n && (p.r.flight.has(i) || !p.r.missing(i)) {
		i++
	}
	return i
}

// pumpHot asks for hot pages.
func (e *Engine) pumpHot() {
	b := &e.bulk
	if len(b.hot) == 0 {
		return
	}
	for len(b.hot) > 0 && !b.full(&e.opt) {
		p := &b.hot[0]
		first, end := p.firstMissing(), p.page+p.n
		if first >= end {
			b.hot = b.hot[1:]
			continue
		}
		last := e.askRange(p.r, first, end)
		e.stats.hot += uint64(last - first)
		p.page, p.n = last, end-last
	}
	if len(b.hot) == 0 {
		b.hot = nil
		e.log.Info("pages in use have been asked for", "pages", e.stats.hot, "others", b.asked-e.stats.hot)
	}
}
