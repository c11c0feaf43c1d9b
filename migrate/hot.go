package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lazymig/lazymig/ahead"
	"github.com/lazymig/lazymig/hot"
	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/restore/memory"
	"github.com/lazymig/lazymig/wire"
)

// Which pages are in use is looked for while the tree runs (package hot), and told to the target before the freeze (MsgHot): it asks for these first. It is
// looked for beside the preparation, and longer the more memory there is, because the longer the rest takes to come.

const (
	leastHotTime = 200 * time.Millisecond
	mostHotTime  = 1500 * time.Millisecond
	hotTimeGB    = time.Second

	writeRounds   = 4 // of tracking for this alone
	writeInterval = 300 * time.Millisecond
)

// hotSearch is looking for pages in use.
type hotSearch struct {
	cancel  context.CancelFunc
	settled chan struct{} // closed when it does not look at the accessed bits any more
	copied  chan struct{} // closed when nothing is copied ahead any more
	writes  *hot.Scores   // what the copying ahead has seen written; up to then the copying's
	done    chan struct{}
	r       hot.Result
	err     error
}

// searchHot begins, if it is worth it.
func (s *Source) searchHot(ctx context.Context, there *preflight.Facts) {
	present := s.rep.Tree.MemoryPresent
	s.times.Hot = hot.Off
	switch how := s.opt.Hot; {
	case how == hot.Off || fills(s.mode):
		return
	case !there.Features[preflight.HotFirst]:
		s.log.Info("it is not looked for hot pages: the agent is of a release before that")
		return
	case (how == "" || how == hot.Auto) && present < worthChoosing:
		return // all of it is there at once
	}
	ctx, cancel := context.WithCancel(ctx)
	h := &hotSearch{cancel: cancel, settled: make(chan struct{}), copied: make(chan struct{}), writes: hot.NewScores(), done: make(chan struct{})}
	s.hot = h
	var all []hot.Process
	for _, t := range s.rep.Tree.Tasks {
		all = append(all, hot.Process{ID: uint32(t.NSPid), PID: t.PID})
	}
	waits := false
	o := hot.Options{
		How: s.opt.Hot, Time: hotTime(present), Log: s.log,
		Writes: func(ctx context.Context, sc *hot.Scores) (uint64, error) {
			waits = true
			close(h.settled)
			select {
			case <-h.copied:
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
			switch {
			case h.writes.Pages() > 0:
				*sc = *h.writes
				return present / pageSize, nil
			case s.copy != nil:
				return 0, errNothingWritten
			}
			return present / pageSize, s.trackWrites(ctx, sc)
		},
	}
	go func() {
		defer close(h.done)
		h.r, h.err = hot.Find(ctx, all, o)
		if !waits {
			close(h.settled)
		}
	}()
}

// hotTime is how long it is looked for hot pages.
func hotTime(present uint64) time.Duration {
	return min(max(time.Duration(float64(present)/(1<<30)*float64(hotTimeGB)), leastHotTime), mostHotTime)
}

// trackWrites sees what is written, for this alone. Whoever prepares the migration waits meanwhile.
func (s *Source) trackWrites(ctx context.Context, sc *hot.Scores) error {
	if !ahead.Supported() {
		return ahead.ErrUnsupported
	}
	c := ahead.New(ahead.Options{Borrow: preflight.Borrow, CloseIn: preflight.CloseIn, Send: func(ahead.Batch) error { return nil }, Log: s.log})
	defer c.Close()
	for range writeRounds {
		if err := c.Track(s.tree); err != nil {
			return err
		}
		if err := c.Protect(); err != nil {
			return err
		}
		select {
		case <-time.After(writeInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		bytes, err := c.Dirty(sc.Add)
		if err != nil {
			return err
		}
		sc.Round(bytes/pageSize, s.rep.Tree.MemoryPresent/pageSize)
	}
	return nil
}

// wrote notes what the copying ahead has seen written in a round.
func (h *hotSearch) wrote(bytes, present uint64) {
	if h != nil {
		h.writes.Round(bytes/pageSize, present/pageSize)
	}
}

// count is wrote's for single pages; nil: nobody wants to know.
func (h *hotSearch) count() func(id uint32, addr, pages uint64) {
	if h == nil {
		return nil
	}
	select {
	case <-h.done:
		return nil
	default:
		return h.writes.Add
	}
}

// await waits until the accessed bits are not cleared any more: who measures writes would measure that.
func (h *hotSearch) await() {
	if h != nil {
		<-h.settled
	}
}

// stop ends the search.
func (h *hotSearch) stop() {
	if h != nil {
		h.cancel()
		<-h.done
	}
}

// sendHot tells the target what was found. The tree still runs; nothing is copied ahead any more.
func (s *Source) sendHot(ctx context.Context) error {
	h := s.hot
	if h == nil {
		return nil
	}
	close(h.copied)
	<-h.done
	if s.copy == nil { // else it has been done after the copying
		if err := s.dump.Renew(); err != nil {
			return err
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if h.err != nil {
		s.notice("which pages are in use is not known, they come in the order of their addresses: %v", h.err)
	} else if h.r.Why != "" {
		s.log.Info("hot pages", "way", h.r.How, "because", h.r.Why)
	}
	if fills(s.mode) { // auto has chosen that
		return nil
	}
	s.times.Hot, s.times.HotBytes = h.r.How, h.r.Pages*pageSize
	s.log.Info("hot pages", "way", h.r.How, "rounds", h.r.Rounds, "bytes", s.times.HotBytes, "spans", len(h.r.Spans))
	for l := h.r.Spans; len(l) > 0; {
		n := min(len(l), mostGood)
		if err := s.sess.sendParts(wire.MsgHot, encodeHot(l[:n])); err != nil {
			return err
		}
		l = l[n:]
	}
	park.At(s.log, "hot")
	return nil
}

// encodeHot is a MsgHot.
func encodeHot(l []hot.Span) []byte {
	e := wire.Encoder{B: make([]byte, 0, 4+goodRecord*len(l))}
	e.U32(uint32(len(l)))
	for _, s := range l {
		e.U32(s.Task)
		e.U64(s.Addr)
		e.U32(s.Words)
		e.U64(s.Mask)
	}
	return e.B
}

var errNothingWritten = errors.New("the copying ahead has seen no page being written")

var errHot = errors.New("hot pages")

// takeHot takes a MsgHot. The peer is not trusted: entries are bounded, and checked.
func takeHot(have []memory.HotPages, p []byte) ([]memory.HotPages, error) {
	d := wire.NewDecoder(p)
	n := d.Count(goodRecord)
	if n > memory.MaxHot-len(have) {
		return nil, fmt.Errorf("%w: %d entries after %d", errHot, n, len(have))
	}
	for range n {
		x := memory.HotPages{Task: d.U32(), Addr: d.U64(), Words: d.U32(), Mask: d.U64()}
		if err := x.Check(); err != nil {
			return nil, fmt.Errorf("%w: %w", errHot, err)
		}
		have = append(have, x)
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("decode %w: %w", errHot, err)
	}
	return have, nil
}

// passHot gives the guardian the list, now that the tree runs: it costs no pause.
func (t *Target) passHot() {
	if len(t.hot) == 0 {
		return
	}
	if err := t.capsule.Hot(t.hot); err != nil {
		t.log.Warn("pages come in the order of their addresses", "err", err)
	}
	t.hot = nil
}
