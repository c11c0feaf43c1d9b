package memory

// The predictor sees the faults only, not the touches of pages that are there: a thread that walks over what was prefetched shows again where
// that ends. It does not see which thread a fault is of either (CRIU's userfaultfds do not tell), so it takes threads apart by where they are. A stream is a sequence
// of faults near each other. It has a trend once a majority of its last steps agree (Leap's vote): in their length, or, for short ones,
// in their direction alone, because all that lies on the way is fetched then. From then on it takes only faults that keep to the trend; others
// belong to streams without one, or begin one. The stream that was used least lately makes room.

const (
	maxStreams = 32
	history    = 8       // steps that vote, at most
	nearStep   = 32      // pages; a shorter step is one of a walk
	sameStream = 1 << 15 // pages; a fault that is farther off is of another stream
)

// Windows: pages before a walk, steps before a stride. They double with each fault that keeps to the trend.
const (
	firstPages, mostPages = 32, 512
	firstSteps, mostSteps = 4, 64
)

// stream is a sequence of faults that one thread may have made.
type stream struct {
	r      *region
	last   int
	steps  [history]int
	n      int // of steps, ever
	trend  int // 1 or −1: a walk; farther: a stride; 0: none
	window int // in steps of the trend
	head   int // the first page that has not been planned; last, or farther in the trend's direction
	used   uint64
}

// plan is what follows from a fault: pages that will be wanted soon.
type plan struct {
	trend int // 1 or −1: n pages in that direction; farther: n steps of that many pages; 0: nothing follows
	first int // page
	n     int
	past  int // of what had been planned: how many pages, or steps, have been passed without a fault
}

func (p plan) walk() int {
	if walks(p.trend) {
		return p.trend
	}
	return 0
}

func walks(trend int) bool { return trend == 1 || trend == -1 }

// predictor holds the streams of all regions.
type predictor struct {
	streams []*stream
	clock   uint64
}

// fault notes a fault at a page of r that has not been noted before, and says what will follow.
func (p *predictor) fault(r *region, page int) plan {
	p.clock++
	s := p.streamOf(r, page)
	s.used = p.clock
	was := s.last
	s.last = page
	if s.trend == 0 {
		if s.n < 0 || page == was { // new
			s.n = max(s.n, 0)
			return plan{}
		}
		s.steps[s.n%history] = class(page - was)
		s.n++
		if s.trend = s.vote(); s.trend == 0 {
			return plan{}
		}
		s.head = page
	}
	return s.ahead(was, page)
}

// ahead widens the window and plans what of it has not been planned.
func (s *stream) ahead(was, page int) plan {
	pl := plan{trend: s.trend, first: page + s.trend}
	if s.window > 0 {
		pl.past = max(0, min((page-was)/s.trend, (s.head-was)/s.trend)-1)
	}
	first, most := firstPages, mostPages
	if !walks(s.trend) {
		first, most = firstSteps, mostSteps
	}
	if s.window = min(2*s.window, most); s.window == 0 {
		s.window = first
	}
	if (s.head-pl.first)/s.trend > 0 {
		pl.first = s.head
	}
	pl.n = max(0, s.window+1-(pl.first-page)/s.trend)
	s.head = pl.first + pl.n*s.trend
	return pl
}

// keeps says whether a fault at page keeps to the trend: on its way, and not far beyond what was planned.
func (s *stream) keeps(page int) bool {
	steps := (page - s.last) / s.trend
	if steps <= 0 || !walks(s.trend) && (page-s.last)%s.trend != 0 {
		return false
	}
	slack := 2
	if walks(s.trend) {
		slack = 2 * nearStep
	}
	return steps <= (s.head-s.last)/s.trend+slack
}

// class is a step as it votes.
func class(step int) int {
	switch {
	case step > 0 && step <= nearStep:
		return 1
	case step < 0 && step >= -nearStep:
		return -1
	}
	return step
}

// vote is the step that a majority of the last ones agree on, of the last four or else of the last eight: a new trend is seen soon, and a
// stray does not hide one.
func (s *stream) vote() int {
	for k := history / 2; k <= history; k *= 2 {
		n := min(k, s.n)
		if n < 2 {
			return 0
		}
		candidate, votes := 0, 0 // Boyer and Moore
		for i := s.n - n; i < s.n; i++ {
			switch c := s.steps[i%history]; {
			case votes == 0:
				candidate, votes = c, 1
			case c == candidate:
				votes++
			default:
				votes--
			}
		}
		agree := 0
		for i := s.n - n; i < s.n; i++ {
			if s.steps[i%history] == candidate {
				agree++
			}
		}
		if 2*agree > n {
			return candidate
		}
		if s.n <= k {
			return 0
		}
	}
	return 0
}

// streamOf finds the stream that a fault belongs to, or begins one: first those whose trend it keeps to, then the nearest without one.
func (p *predictor) streamOf(r *region, page int) *stream {
	var best, oldest *stream
	nearest := sameStream + 1
	for _, s := range p.streams {
		if oldest == nil || s.used < oldest.used {
			oldest = s
		}
		if s.r != r {
			continue
		}
		d := max(page-s.last, s.last-page)
		if s.trend != 0 {
			if !s.keeps(page) {
				continue
			}
			d = 0
		}
		if d < nearest {
			best, nearest = s, d
		}
	}
	if best != nil {
		return best
	}
	if len(p.streams) < maxStreams {
		oldest = &stream{}
		p.streams = append(p.streams, oldest)
	}
	*oldest = stream{r: r, n: -1}
	return oldest
}
