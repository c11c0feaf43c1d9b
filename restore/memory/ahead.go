package memory

import (
	"slices"
	"time"
)

// piece is pages of a region.
type piece struct {
	r    *region
	page int
	n    int
}

const (
	piecePages = 16  // of what is prefetched: a fault of another thread waits for one such answer at most
	maxPlanned = 128 // pieces that wait to be asked for; the oldest are left to the bulk
	maxRecent  = 16  // places that the bulk looks at before it goes on

	leastFlying, firstFlying, mostFlying = 2, 4, 16

	// queueing is how much longer an answer may take than the shortest one before less is asked for at a time.
	queueing = time.Millisecond
)

// ahead is what is prefetched: pages that the predictor expects to be wanted. They go over the urgent lane, behind the faults, and so few
// at a time that no queue grows there: more if the answers come as fast as when the line was idle, else fewer, as TCP Vegas does it.
type ahead struct {
	planned []piece
	flying  []*want // in the order of asking
	window  int     // how many may fly
	least   time.Duration
}

// follow plans what comes after a fault, and has the bulk go there.
func (e *Engine) follow(r *region, page int, pl plan) {
	e.stats.prefetched += uint64(pl.n)
	e.stats.prefetchHits += uint64(pl.past)
	place := page
	switch pl.trend {
	case 0:
	case 1:
		e.plan(r, pl.first, pl.first+pl.n, false)
		place = pl.first + pl.n
	case -1:
		e.plan(r, pl.first-pl.n+1, pl.first+1, true)
		place = pl.first - pl.n
	default:
		for i := range pl.n {
			first, last := around(pl.first+i*pl.trend, e.opt.FaultPages, 0)
			e.plan(r, first, last, false)
		}
		place = pl.first + pl.n*pl.trend
	}
	e.bulk.visit(r, place-place%e.opt.BulkPages)
}

// plan notes the pages [first, last), down says from which end.
func (e *Engine) plan(r *region, first, last int, down bool) {
	first, last = max(first, 0), min(last, r.pages)
	if first >= last {
		return
	}
	at := len(e.ahead.planned)
	for ; first < last; first += piecePages {
		e.ahead.planned = append(e.ahead.planned, piece{r, first, min(piecePages, last-first)})
	}
	if down {
		slices.Reverse(e.ahead.planned[at:])
	}
	if n := len(e.ahead.planned) - maxPlanned; n > 0 {
		e.ahead.planned = slices.Delete(e.ahead.planned, 0, n)
	}
}

// prefetch asks for what is planned.
func (e *Engine) prefetch() {
	a := &e.ahead
	if a.window == 0 {
		a.window = firstFlying
	}
	for len(a.planned) > 0 && len(a.flying) < a.window && !e.closed && !time.Now().Before(e.shortOf) {
		p := &a.planned[0]
		for p.n > 0 && !e.lacks(p.r, p.page) {
			p.page++
			p.n--
		}
		n := 0
		for n < p.n && e.lacks(p.r, p.page+n) {
			n++
		}
		if n > 0 {
			e.nextID += 2
			w := &want{id: e.nextID, piece: piece{p.r, p.page, n}, ahead: true, asked: time.Now()}
			e.wants[w.id] = w
			a.flying = append(a.flying, w)
			e.ask(w)
			p.page += n
			p.n -= n
		}
		if p.n == 0 {
			a.planned = a.planned[1:]
		}
	}
}

// lacks says that a page is missing and has not been asked for.
func (e *Engine) lacks(r *region, page int) bool {
	return r.missing(page) && !r.flight.has(page) && r.urgent[page] == nil && e.ahead.find(r, page) < 0
}

// find is the place in the queue of the want that brings a page; −1: none does.
func (a *ahead) find(r *region, page int) int {
	return slices.IndexFunc(a.flying, func(w *want) bool { return w.r == r && w.page <= page && page < w.page+w.n })
}

// soon is the want that brings a page before it could come by another request, if there is one.
func (a *ahead) soon(r *region, page int) *want {
	if i := a.find(r, page); i >= 0 && i < leastFlying && a.flying[i].due.IsZero() {
		return a.flying[i]
	}
	return nil
}

// forget takes out w, which was answered, and learns from the time that took.
func (a *ahead) forget(w *want) {
	if i := slices.Index(a.flying, w); i >= 0 {
		a.flying = slices.Delete(a.flying, i, i+1)
	}
	if w.tries == 0 {
		a.took(time.Since(w.asked))
	}
}

// took adapts the window. The shortest time is forgotten slowly: the line may change.
func (a *ahead) took(d time.Duration) {
	if a.least == 0 || d < a.least {
		a.least = d
	} else {
		a.least += a.least / 64
	}
	if d < a.least+queueing {
		a.window = min(a.window+1, mostFlying)
	} else {
		a.window = max(a.window-1, leastFlying)
	}
}

// visit has the bulk go to a place when it asks next.
func (b *bulk) visit(r *region, page int) {
	if page < 0 || page >= r.pages {
		return
	}
	p := piece{r: r, page: page}
	if i := slices.Index(b.recent, p); i >= 0 {
		b.recent = slices.Delete(b.recent, i, i+1)
	}
	if len(b.recent) == maxRecent {
		b.recent = slices.Delete(b.recent, 0, 1)
	}
	b.recent = append(b.recent, p)
}

// pumpRecent asks for what is missing around the last faults, the newest first.
func (e *Engine) pumpRecent() {
	b := &e.bulk
	for len(b.recent) > 0 && b.flying < e.opt.Window {
		p := b.recent[len(b.recent)-1]
		first := nextMissing(p.r.views, p.r.flight, p.page)
		if first >= min(p.page+e.opt.BulkPages, p.r.pages) {
			b.recent = b.recent[:len(b.recent)-1]
			continue
		}
		e.askBulk(p.r, first)
	}
}
