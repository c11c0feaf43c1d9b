package hot

import (
	"cmp"
	"math"
	"slices"
)

// Span is pages to be sent: those in the words of 64 pages from Addr on whose bits are set in Mask, which is the same for all Words of them.
type Span struct {
	Task  uint32
	Addr  uint64
	Words uint32
	Mask  uint64
}

const (
	wordPages = 64
	wordSize  = wordPages * pageSize
)

// Pages is how many they are.
func (s *Span) Pages() uint64 { return uint64(s.Words) * uint64(ones(s.Mask)) }

// maxSpans bounds a list: 6 MB on the line, and as much at the target.
const maxSpans = 1 << 18

// Scores counts for each page in how many rounds it was seen.
type Scores struct {
	blocks map[block]*[entries]uint8
	rounds int
	share  float64 // of the pages, marked in all rounds together
	last   block   // looked up last
	cur    *[entries]uint8
}

// block is 2 MB of a task.
type block struct {
	task uint32
	n    uint64
}

// NewScores makes an empty one.
func NewScores() *Scores { return &Scores{blocks: map[block]*[entries]uint8{}} }

// Add counts pages that were seen in this round.
func (s *Scores) Add(task uint32, addr uint64, pages uint64) {
	for end := addr + pages*pageSize; addr < end; addr += pageSize {
		k := block{task, addr / leafSpan}
		if s.cur == nil || s.last != k {
			s.last, s.cur = k, s.blocks[k]
			if s.cur == nil {
				s.cur = new([entries]uint8)
				s.blocks[k] = s.cur
			}
		}
		if p := &s.cur[addr/pageSize%entries]; *p < math.MaxUint8 {
			*p++
		}
	}
}

// Round ends a round in which so many of the pages that are there were seen.
func (s *Scores) Round(marked, present uint64) {
	s.rounds++
	s.share += float64(marked) / float64(max(present, 1))
}

// Rounds is how many there were.
func (s *Scores) Rounds() int { return s.rounds }

// cut is the least score of a hot page; 0: there is none. present is how many pages there are.
//
// If all pages were used alike the scores would have a binomial distribution: hot is a score that far more pages have than that says. The others are
// then used less than was assumed, which may make lower scores hot, too.
func (s *Scores) cut(present uint64) (least int) {
	var n, marks [math.MaxUint8 + 2]uint64 // pages with at least this score, and how often they were seen
	for _, b := range s.blocks {
		for _, c := range b {
			n[c]++
		}
	}
	for c := math.MaxUint8; c > 0; c-- {
		marks[c] = marks[c+1] + n[c]*uint64(c)
		n[c] += n[c+1]
	}
	const (
		surely  = 4   // times as many as chance would bring to this score
		tooMany = 0.5 // of all pages: their order is no order
	)
	share := s.share / float64(max(s.rounds, 1))
	for {
		c := 1
		for ; c <= s.rounds; c++ {
			seen, chance := float64(n[c]), float64(present)*atLeast(s.rounds, c, share)
			if seen <= tooMany*float64(present) && seen > surely*chance+3*math.Sqrt(chance) {
				break
			}
		}
		if c > s.rounds || least > 0 && c >= least {
			return least
		}
		least = c
		share = float64(marks[1]-marks[c]) / float64(max(present-min(n[c], present), 1)) / float64(s.rounds)
	}
}

// atLeast is the probability that of n throws c or more succeed.
func atLeast(n, c int, p float64) float64 {
	sum, term := 0.0, math.Pow(1-p, float64(n)) // of k successes
	for k := range c {
		sum += term
		term *= p / max(1-p, 1e-9) * float64(n-k) / float64(k+1)
	}
	return max(1-sum, 0)
}

// List is the hot pages, the hottest first.
func (s *Scores) List(present uint64) []Span {
	least := s.cut(present)
	if least == 0 {
		return nil
	}
	return s.from(least)
}

// from lists the pages whose score is so high.
func (s *Scores) from(least int) (out []Span) {
	keys := make([]block, 0, len(s.blocks))
	for k := range s.blocks {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b block) int { return cmp.Or(cmp.Compare(a.task, b.task), cmp.Compare(a.n, b.n)) })
	below := math.MaxUint8 + 1
	for _, part := range []int{2, 4, 8, math.MaxUint8} {
		c := max(s.rounds/part, least)
		for _, k := range keys {
			for w := range entries / wordPages {
				mask := uint64(0)
				for i, v := range s.blocks[k][w*wordPages : (w+1)*wordPages] {
					if int(v) >= c && int(v) < below {
						mask |= 1 << i
					}
				}
				if out = add(out, Span{k.task, k.n*leafSpan + uint64(w)*wordSize, 1, mask}); len(out) == maxSpans {
					return out
				}
			}
		}
		if below = c; c == least {
			break
		}
	}
	return out
}

// add appends a span, or makes the last one longer.
func add(l []Span, s Span) []Span {
	if s.Mask == 0 || s.Words == 0 {
		return l
	}
	if n := len(l); n > 0 {
		if p := &l[n-1]; p.Task == s.Task && p.Mask == s.Mask && p.Addr+uint64(p.Words)*wordSize == s.Addr {
			p.Words += s.Words
			return l
		}
	}
	return append(l, s)
}

// addRange appends a range of pages.
func addRange(l []Span, task uint32, r Range) []Span {
	for r.Start < r.End && len(l) < maxSpans {
		base := r.Start &^ (wordSize - 1)
		first := (r.Start - base) / pageSize
		if words := (r.End - base) / wordSize; first == 0 && words > 0 {
			words = min(words, math.MaxUint32)
			l = add(l, Span{task, base, uint32(words), math.MaxUint64})
			r.Start = base + words*wordSize
			continue
		}
		end := min(r.End, base+wordSize)
		n := (end - r.Start) / pageSize
		l = add(l, Span{task, base, 1, math.MaxUint64 >> (wordPages - n) << first})
		r.Start = end
	}
	return l
}
