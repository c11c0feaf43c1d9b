package restore

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/restore/memory"
)

// Before the push the guardian asks what there is in the tree's larger regions: reservations of gigabytes with a few pages
// are common (JVM, Go, node), and asking for their pages 64 by 64 would take for ever. What the source proves to be absent
// is zero; the engine never asks for it.

const (
	surveyLeast  = 1 << 20 // smaller regions are four wants
	surveyAtOnce = 16
	surveyPause  = 100 * time.Millisecond // after a failure
)

// survey asks the handler about one range, and waits for the answer.
func (l *link) survey(task uint32, start, end uint64) (pagesrv.Layout, error) {
	ch := make(chan linkMessage, 1)
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return pagesrv.Layout{}, errNoHandler
	}
	l.seq++
	w := slotWant{seq: l.seq, slot: noSlot, want: memory.Want{Task: task, Addr: start}, end: end}
	l.surveys[w.seq] = ch
	err := l.sock.Send(w.encode())
	if err != nil {
		delete(l.surveys, w.seq)
	}
	l.mu.Unlock()
	if err != nil {
		return pagesrv.Layout{}, err
	}
	m, ok := <-ch
	switch {
	case !ok:
		return pagesrv.Layout{}, errNoHandler
	case m.err != nil:
		return pagesrv.Layout{}, m.err
	}
	return m.found, checkLayout(m.found, start, end)
}

// checkLayout: the handler may say anything.
func checkLayout(l pagesrv.Layout, start, end uint64) error {
	at := start
	for _, r := range l.Fetch {
		if r.Start < at || r.End <= r.Start || (r.Start|r.End)%pagesrv.PageSize != 0 {
			return fmt.Errorf("%w: survey found %#x-%#x", errMessage, r.Start, r.End)
		}
		at = r.End
	}
	if l.End <= start || l.End > end || l.End < at || l.End%pagesrv.PageSize != 0 {
		return fmt.Errorf("%w: survey of %#x-%#x ends at %#x", errMessage, start, end, l.End)
	}
	return nil
}

// gaps are what lies between the ranges of l, from start on.
func gaps(l pagesrv.Layout, start uint64) (out []memory.Region) {
	for _, r := range append(slices.Clip(l.Fetch), pagesrv.Range{Start: l.End, End: l.End}) {
		if r.Start > start {
			out = append(out, memory.Region{Start: start, End: r.Start})
		}
		start = r.End
	}
	return out
}

// surveyAll returns when all larger regions have been surveyed. A lost handler or source is waited for; a task that the
// source can no longer read is left to the engine, whose wants fail the same way.
func (h *hub) surveyAll(e *memory.Engine, tasks []memory.TaskMem) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, surveyAtOnce)
	for _, t := range tasks {
		for _, r := range t.Regions {
			if r.End-r.Start < surveyLeast {
				continue
			}
			select {
			case turn <- struct{}{}:
			case <-h.closed:
				wg.Wait()
				return
			}
			wg.Go(func() {
				defer func() { <-turn }()
				h.surveyRegion(e, t.ID, r)
			})
		}
	}
	wg.Wait()
}

func (h *hub) surveyRegion(e *memory.Engine, task uint32, r memory.Region) {
	for at, failures := r.Start, 0; at < r.End; {
		h.mu.Lock()
		l := h.link
		h.mu.Unlock()
		err := errNoHandler
		if l != nil {
			var found pagesrv.Layout
			if found, err = l.survey(task, at, r.End); err == nil {
				if err = e.Absent(task, gaps(found, at)); err == nil {
					at, failures = found.End, 0
					continue
				}
			}
		}
		if !errors.Is(err, errNoHandler) {
			if failures++; failures > 3 {
				h.log.Warn("survey memory", "task", task, "start", at, "end", r.End, "err", err)
				return
			}
		}
		select {
		case <-time.After(surveyPause):
		case <-e.Drained(): // nothing is left of the tree
			return
		case <-h.closed:
			return
		}
	}
}
