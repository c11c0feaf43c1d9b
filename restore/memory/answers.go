package memory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

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
	w.each(runs, func(p piece, kind RunKind) {
		for p.n > 0 {
			n := p.n
			var d []byte
			if kind == Data {
				if !w.urgent {
					n = min(n, bulkPiece)
					between()
				}
				d, data = data[:n*pageSize:n*pageSize], data[n*pageSize:]
			}
			e.take(p.r, p.page, Run{Kind: kind, Pages: uint32(n)}, d)
			p.page += n
			p.n -= n
		}
	})
	// The same want may have been answered twice at once.
	if e.wants[id] == w && !e.closed {
		e.forget(w)
		w.each(runs, func(p piece, kind RunKind) {
			if kind != Error {
				return
			}
			e.stats.errorPages += uint64(p.n)
			if !w.ahead { // who waits asks again below, the bulk asks for the rest
				e.retryPart(w, p, errors.New("the source could not read the pages"))
			}
		})
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

// each calls f for the runs of an answer that fits, cut where a range of w ends.
func (w *want) each(runs []Run, f func(p piece, kind RunKind)) {
	i, p := 0, w.piece
	for _, run := range runs {
		for left := int(run.Pages); left > 0; {
			if p.n == 0 {
				i++
				p = w.part(i)
			}
			n := min(left, p.n)
			f(piece{p.r, p.page, n}, run.Kind)
			p.page += n
			p.n -= n
			left -= n
		}
	}
}

// take fills a run, or a part of one.
func (e *Engine) take(r *region, page int, run Run, data []byte) {
	switch run.Kind {
	case Error:
		return
	case Zero:
		e.leaveZero(r, page, int(run.Pages))
		return
	case Guard:
		e.stats.guards += uint64(run.Pages)
	}
	e.spread(r, page, run, data)
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
	if n := w.total(); pages != uint64(n) || bytes != uint64(size) {
		return fmt.Errorf("%d pages and %d bytes for %d pages: %w", pages, size, n, ErrAnswer)
	}
	return nil
}

// Failed says that a want could not be brought. It is asked again after a while; it never becomes zeros.
func (e *Engine) Failed(id uint64, err error) {
	e.mu.Lock()
	defer e.unlock()
	w := e.wants[id]
	if w == nil || !w.due.IsZero() || e.closed {
		return
	}
	if len(w.more) == 0 {
		e.retry(w, err)
		return
	}
	e.forget(w)
	for i := range 1 + len(w.more) {
		e.retryPart(w, w.part(i), err)
	}
}

// retryPart asks again for a range of w, which has been forgotten, on its own: what ails one range must not keep the others from coming.
func (e *Engine) retryPart(w *want, p piece, err error) {
	nw := e.newWant(p.r, p.page, p.n, w.urgent)
	nw.tries = w.tries
	e.retry(nw, err)
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
