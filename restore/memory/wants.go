package memory

import "time"

// want is a request that has not been answered, or that waits for its time to be asked again.
type want struct {
	id uint64
	piece
	more   []piece // bulk: other ranges of the task, in the order in which they are asked for
	urgent bool
	ahead  bool      // prefetched: nobody waited when it was asked
	asked  time.Time // ahead
	tries  int
	due    time.Time // zero: with the handler
}

// part is the i-th range.
func (w *want) part(i int) piece {
	if i == 0 {
		return w.piece
	}
	return w.more[i-1]
}

// total is the pages of all ranges.
func (w *want) total() int {
	n := w.n
	for _, p := range w.more {
		n += p.n
	}
	return n
}

// ask hands w to the handler, if there is one.
func (e *Engine) ask(w *want) {
	w.due = time.Time{}
	if e.bringer != nil {
		a := Want{ID: w.id, Task: w.r.task, Addr: w.r.start + uint64(w.page)*pageSize, Pages: uint32(w.n), Urgent: w.urgent, Prefetch: w.ahead}
		for _, p := range w.more {
			a.More = append(a.More, Span{Addr: p.r.start + uint64(p.page)*pageSize, Pages: uint32(p.n)})
		}
		e.outbox = append(e.outbox, a)
	}
}

func (e *Engine) newWant(r *region, page, n int, urgent bool) *want {
	e.nextID += 2
	id := e.nextID
	if urgent {
		id |= 1
	}
	w := &want{id: id, piece: piece{r, page, n}, urgent: urgent}
	e.wants[w.id] = w
	if urgent {
		r.await(w, page, n)
	} else {
		e.bulk.flying++
		e.bulk.takeOff(w.piece)
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
	for i := range 1 + len(w.more) {
		p := w.part(i)
		p.r.flight.clear(p.page, p.page+p.n)
		e.bulk.pages -= p.n
	}
	e.bulk.flying--
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
