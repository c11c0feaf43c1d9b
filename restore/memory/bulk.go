package memory

import "time"

// bulk walks over all regions, again and again until nothing is missing.
type bulk struct {
	on      bool
	todo    []*region // those that are not complete, in address order
	at      int       // in todo
	page    int
	flying  int     // wants
	pages   int     // that they are for
	open    *want   // one of them that has not been handed to the handler: there may be more ranges to add. nil outside pump
	asked   uint64  // pages, ever
	filled  int     // flying when the window was filled last
	hot     []piece // to be asked for before all else
	recent  []piece // places of the last faults, the newest last
	resumes time.Time
}

// maxParked is where the bulk stops until mms have settled.
const maxParked = 4 << 20

// complete says that no mm misses a page of r, nor ever will: bits are never cleared.
func (r *region) complete() bool {
	for _, v := range r.views {
		if v.taken.left > 0 {
			return false
		}
	}
	return true
}

// pump keeps the window of bulk wants full, or nearly: several at once wake the handler once.
func (e *Engine) pump() {
	b := &e.bulk
	if !b.on || e.closed || b.flying > b.filled/2 || e.parked > maxParked || time.Now().Before(b.resumes) {
		return
	}
	defer func() {
		e.closeOpen()
		b.filled = b.flying
	}()
	e.pumpHot()
	e.pumpRecent()
	for dry := 0; !b.full(&e.opt) && dry <= len(b.todo) && len(b.todo) > 0; {
		if b.at >= len(b.todo) {
			b.at, b.page = 0, 0
		}
		r := b.todo[b.at]
		if e.tasks[r.task].added && r.complete() {
			b.todo = append(b.todo[:b.at], b.todo[b.at+1:]...)
			b.page = 0
			continue
		}
		first := nextMissing(r.views, r.flight, b.page)
		if first == r.pages {
			b.at++
			b.page = 0
			dry++
			continue
		}
		dry = 0
		b.page = e.askBulk(r, first)
	}
}

// smallWants is how many times as many wants may fly if they are small: what is missing lies scattered after a copy ahead.
const smallWants = 4

// full says that enough is asked for: a window of large wants, or more small ones.
func (b *bulk) full(o *Options) bool {
	return b.flying >= smallWants*o.Window || b.flying >= o.Window && b.pages >= o.Window*o.BulkPages/2
}

// askBulk asks for missing pages from first on, and says where it ended.
func (e *Engine) askBulk(r *region, first int) (last int) { return e.askRange(r, first, r.pages) }

// askRange is askBulk up to a page.
func (e *Engine) askRange(r *region, first, end int) (last int) {
	last = first + 1
	for last < end && last-first < e.opt.BulkPages && !r.flight.has(last) && r.missing(last) {
		last++
	}
	e.gather(piece{r, first, last - first})
	return last
}

// gather adds a range to the open want, or begins another: one message for what lies scattered, and one answer.
func (e *Engine) gather(p piece) {
	b := &e.bulk
	if w := b.open; w != nil && w.r.task == p.r.task && 1+len(w.more) < e.opt.Ranges && w.total()+p.n <= e.opt.BulkPages {
		w.more = append(w.more, p)
		b.takeOff(p)
		return
	}
	e.closeOpen()
	b.open = e.newWant(p.r, p.page, p.n, false)
}

// closeOpen hands the open want to the handler.
func (e *Engine) closeOpen() {
	if w := e.bulk.open; w != nil {
		e.bulk.open = nil
		e.ask(w)
	}
}

// takeOff notes that a range is under way.
func (b *bulk) takeOff(p piece) {
	p.r.flight.set(p.page, p.page+p.n)
	b.pages += p.n
	b.asked += uint64(p.n)
}

// holdBulk keeps the bulk from asking at once for what could not be filled.
func (e *Engine) holdBulk(d time.Duration) {
	e.bulk.resumes = time.Now().Add(d)
	e.wakeLoop()
}
