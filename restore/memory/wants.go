package memory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// want is a request that has not been answered, or that waits for its time to be asked again.
type want struct {
	id      uint64
	r       *region
	page, n int
	urgent  bool
	ahead   bool      // prefetched: nobody waited when it was asked
	asked   time.Time // ahead
	tries   int
	due     time.Time // zero: with the handler
}

// bulk walks over all regions, again and again until nothing is missing.
type bulk struct {
	on      bool
	todo    []*region // those that are not complete, in address order
	at      int       // in todo
	page    int
	flying  int     // wants
	pages   int     // that they are for
	asked   uint64  // pages, ever
	filled  int     // flying when the window was filled last
	hot     []piece // to be asked for before all else
	recent  []piece // places of the last faults, the newest last
	resumes time.Time
}

// maxParked is where the bulk stops until mms have settled.
const maxParked = 4 << 20

// ask hands w to the handler, if there is one.
func (e *Engine) ask(w *want) {
	w.due = time.Time{}
	if e.bringer != nil {
		e.outbox = append(e.outbox, Want{ID: w.id, Task: w.r.task, Addr: w.r.start + uint64(w.page)*pageSize, Pages: uint32(w.n), Urgent: w.urgent, Prefetch: w.ahead})
	}
}

func (e *Engine) newWant(r *region, page, n int, urgent bool) *want {
	e.nextID += 2
	id := e.nextID
	if urgent {
		id |= 1
	}
	w := &want{id: id, r: r, page: page, n: n, urgent: urgent}
	e.wants[w.id] = w
	if urgent {
		r.await(w, page, n)
	} else {
		r.flight.set(page, page+n)
		e.bulk.flying++
		e.bulk.pages += n
		e.bulk.asked += uint64(n)
	}
	return w
}

// urgentID: the lowest bit of an ID tells, without the lock, whether somebody waits.
func urgentID(id uint64) bool { return id&1 != 0 }

// forget takes w out of the books.
func (e *Engine) forget(w *want) {
	delete(e.wants, w.id)
	if w.urgent || w.ahead {
		for i := w.page; i < w.page+w.n; i++ {
			if w.r.urgent[i] == w {
				delete(w.r.urgent, i)
			}
		}
	}
	if w.ahead {
		e.ahead.forget(w)
	}
	if w.urgent || w.ahead {
		return
	}
	w.r.flight.clear(w.page, w.page+w.n)
	e.bulk.flying--
	e.bulk.pages -= w.n
}

// await has faults wait for w at pages that it brings.
func (r *region) await(w *want, page, n int) {
	for i := page; i < page+n; i++ {
		r.urgent[i] = w
	}
}

// askUrgent asks for the page, and the missing ones around it, unless a fault already has. That the bulk has asked for it
// does not count: it may be behind a megabyte of other pages.
func (e *Engine) askUrgent(r *region, page int) {
	if r.urgent[page] != nil || e.fromCopied(r, page) {
		return
	}
	pl := e.predictor.fault(r, page)
	e.follow(r, page, pl)
	if w := e.ahead.soon(r, page); w != nil {
		r.await(w, page, 1)
		e.prefetch()
		return
	}
	first, last := around(page, e.opt.FaultPages, pl.walk())
	first, last = max(first, 0), min(last, r.pages)
	for i := page; i > first; i-- {
		if r.urgent[i-1] != nil || !r.missing(i-1) {
			first = i
			break
		}
	}
	for i := page + 1; i < last; i++ {
		if r.urgent[i] != nil || !r.missing(i) {
			last = i
			break
		}
	}
	w := e.newWant(r, first, last-first, true)
	if now := time.Now(); now.Before(e.shortOf) {
		w.due = e.shortOf
		e.retries = append(e.retries, w)
		e.wakeLoop()
		return
	}
	e.ask(w)
	e.prefetch()
}

// around is what is asked for a fault: the aligned block, or twice as much of what lies before a thread that walks.
func around(page, block, walk int) (first, last int) {
	switch walk {
	case 1:
		return page, page + 2*block
	case -1:
		return page + 1 - 2*block, page + 1
	}
	first = page - page%block
	return first, first + block
}

// missing says whether an mm misses the page.
func (r *region) missing(page int) bool {
	for _, v := range r.views {
		if !v.taken.has(page) {
			return true
		}
	}
	return false
}

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
	defer func() { b.filled = b.flying }()
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
	e.ask(e.newWant(r, first, last-first, false))
	return last
}

// holdBulk keeps the bulk from asking at once for what could not be filled.
func (e *Engine) holdBulk(d time.Duration) {
	e.bulk.resumes = time.Now().Add(d)
	e.wakeLoop()
}

// ErrAnswer is a handler's answer that does not fit what was asked; the want is asked again.
var ErrAnswer = errors.New("answer does not fit the request")

// bulkPiece is how many pages of a bulk answer are filled before faults are let in: some 25 µs.
const bulkPiece = 16

// Brought fills what a handler brought for a want: runs that together are the want's pages, and the bytes of the data
// runs. When it returns data may be used again. An unknown ID (a second answer) is no error.
func (e *Engine) Brought(id uint64, runs []Run, data []byte) error {
	return e.brought(id, runs, data, e.letFaultsIn)
}

// brought calls between, which may release the lock, before each piece of a bulk answer.
func (e *Engine) brought(id uint64, runs []Run, data []byte, between func()) error {
	if urgentID(id) {
		e.lockFirst()
	} else {
		e.mu.Lock()
	}
	defer e.unlock()
	if e.closed {
		return fmt.Errorf("take pages: %w", ErrClosed)
	}
	w := e.wants[id]
	if w == nil {
		return nil
	}
	if err := checkRuns(w, runs, len(data)); err != nil {
		e.retry(w, err)
		return err
	}
	page := w.page
	for _, run := range runs {
		for left := int(run.Pages); left > 0; {
			n := left
			var d []byte
			if run.Kind == Data {
				if !w.urgent {
					n = min(n, bulkPiece)
					between()
				}
				d, data = data[:n*pageSize:n*pageSize], data[n*pageSize:]
			}
			e.take(w, page, Run{Kind: run.Kind, Pages: uint32(n)}, d)
			page += n
			left -= n
		}
	}
	// The same want may have been answered twice at once.
	if e.wants[id] == w && !e.closed {
		e.forget(w)
		page = w.page
		for _, run := range runs {
			if n := int(run.Pages); run.Kind == Error {
				e.stats.errorPages += uint64(n)
				if w.ahead { // who waits asks again below, the bulk asks for the rest
					page += n
					continue
				}
				nw := e.newWant(w.r, page, n, w.urgent)
				nw.tries = w.tries
				e.retry(nw, errors.New("the source could not read the pages"))
			}
			page += int(run.Pages)
		}
	}
	if w.urgent || w.ahead {
		e.askForWaiting(w.r)
	}
	if w.ahead {
		e.prefetch()
	}
	e.pump()
	e.finish()
	return nil
}

// take fills a run, or a part of one.
func (e *Engine) take(w *want, page int, run Run, data []byte) {
	switch run.Kind {
	case Error:
		return
	case Zero:
		e.leaveZero(w.r, page, int(run.Pages))
		return
	case Guard:
		e.stats.guards += uint64(run.Pages)
	}
	e.spread(w.r, page, run, data)
}

// askForWaiting asks once more for what threads still wait for: a page that came could not be filled everywhere.
func (e *Engine) askForWaiting(r *region) {
	if r.object != nil {
		r.object.askForSleepers(e)
		return
	}
	for _, v := range slices.Clone(r.views) {
		if v.mm.settled {
			e.answerAll(v.mm)
		}
	}
}

func checkRuns(w *want, runs []Run, size int) error {
	pages, bytes := uint64(0), uint64(0)
	for _, r := range runs {
		if r.Kind < Data || r.Kind > Error || r.Pages == 0 {
			return fmt.Errorf("run of kind %d, %d pages: %w", r.Kind, r.Pages, ErrAnswer)
		}
		pages += uint64(r.Pages)
		if r.Kind == Data {
			bytes += uint64(r.Pages) * pageSize
		}
	}
	if pages != uint64(w.n) || bytes != uint64(size) {
		return fmt.Errorf("%d pages and %d bytes for %d pages: %w", pages, size, w.n, ErrAnswer)
	}
	return nil
}

// Failed says that a want could not be brought. It is asked again after a while; it never becomes zeros.
func (e *Engine) Failed(id uint64, err error) {
	e.mu.Lock()
	defer e.unlock()
	if w := e.wants[id]; w != nil && w.due.IsZero() && !e.closed {
		e.retry(w, err)
	}
}

func (e *Engine) retry(w *want, err error) {
	e.stats.failures++
	w.due = time.Now().Add(after(w.tries))
	w.tries++
	level := slog.LevelDebug
	if w.tries&(w.tries-1) == 0 && w.tries > 2 { // the 4th time, the 8th …
		level = slog.LevelWarn
	}
	e.log.Log(context.Background(), level, "pages not brought, asked again", "task", w.r.task, "addr", w.r.start+uint64(w.page)*pageSize, "pages", w.n, "tries", w.tries, "err", err)
	if !slices.Contains(e.retries, w) {
		e.retries = append(e.retries, w)
	}
	e.wakeLoop()
}

// retryDue asks what is due and returns the time until the next is, or 0.
func (e *Engine) retryDue(now time.Time) (next time.Duration) {
	sooner := func(t time.Time) {
		if d := t.Sub(now); next == 0 || d < next {
			next = max(d, 1)
		}
	}
	keep := e.retries[:0]
	for _, w := range e.retries {
		switch {
		case e.wants[w.id] != w || w.due.IsZero():
		case now.Before(w.due):
			keep = append(keep, w)
			sooner(w.due)
		default:
			e.ask(w)
		}
	}
	clear(e.retries[len(keep):])
	e.retries = keep
	if now.Before(e.bulk.resumes) {
		sooner(e.bulk.resumes)
	}
	return next
}

// finish closes the userfaultfds of mms that miss nothing, and says so when there are none left.
func (e *Engine) finish() {
	if !e.bulk.on || e.bulk.flying < 0 {
		return
	}
	e.lookFilled()
	for _, m := range e.mms {
		if m.own == nil && m.settled && len(m.parked) == 0 && len(m.batch) == 0 && m.whole() && (!m.shares || e.sharedLeft() == 0) {
			if !e.mayClose(m) {
				e.unsettle(m)
				continue
			}
			if m.id != 0 && dumpsCore(e.opt.Proc, m.id) { // it may have passed pages before they came
				e.gone[m.id] = true
			}
			e.dropMM(m)
		}
	}
	e.dropObjects()
	if len(e.mms) > 0 || e.done || e.stats.drained {
		return
	}
	for _, t := range e.tasks {
		if !t.added {
			return
		}
	}
	e.stats.drained = true
	e.done = true
	// What was asked for twice, or ahead, may still be under way. Nobody needs it, and the source ends now.
	for _, w := range e.wants {
		e.forget(w)
	}
	e.ahead.planned = nil
}
