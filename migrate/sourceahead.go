package migrate

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/lazymig/lazymig/ahead"
	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/wire"
)

// Copying ahead, between prepared and freeze. It goes on for as many rounds as pay.
const (
	mostRounds    = 3           // hybrid: what is written all the time is sent again with each
	mostPreRounds = 12          // pre
	littleLeft    = 16 << 20    // is fetched after the freeze in less time than a round takes
	worthwhile    = 0.6         // hybrid: another round, if no more than this part of what was sent has been written meanwhile
	shrinks       = 0.9         // pre: else the rounds do not come to an end
	restTime      = time.Second // pre: rounds closer together find what is written all the time
)

// copying is memory being copied ahead.
type copying struct {
	c      *ahead.Copier
	s      *Source
	head   []byte
	inject *preflight.Injector // nil: nothing is done to the tree
	pack   *pagesrv.Packing    // nil: the target can't unpack
	onLine uint64              // bytes that have been sent
	ctx    context.Context
	times  aheadTimes
	tell   chan aheadTimes
	echo   chan struct{}  // the target's answer to MsgClock
	why    *Event         // of the choice
	wg     sync.WaitGroup // of goodAhead
}

// aheadTimes is how far it is.
type aheadTimes struct {
	rounds  int
	sent    uint64
	dirty   uint64 // written since the last round
	rate    float64
	stopped string // why there is no further round
}

// copiesAhead says whether a mode does.
func copiesAhead(mode string) bool {
	return mode == ModeHybrid || mode == ModePre || mode == ModeAuto
}

// copyAhead is for the modes that do. The tree runs; nothing of it is changed but that its writes are tracked, until s.copy is closed.
func (s *Source) copyAhead(ctx context.Context) error {
	if s.mode == ModeAuto && s.rep.Tree.MemoryPresent < worthChoosing {
		return s.chosen(ModePost, "there is little memory")
	}
	if !copiesAhead(s.mode) {
		return nil
	}
	if s.compares() && s.mode != ModeAuto {
		s.notice("pages that are copied ahead are compared while the tree stands still: about a second for 1 to 4 GB")
	}
	whole := ctx // of the migration up to the grant
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.copy = &copying{s: s, ctx: ctx, tell: make(chan aheadTimes, 1), echo: make(chan struct{}, 1)}
	o := ahead.Options{Send: s.copy.send, Room: s.aheadRoom, Compare: s.compares(), Log: s.log}
	if !o.Compare {
		var err error
		if s.copy.inject, err = preflight.StartInjector(s.opt.Exe); err != nil {
			return err
		}
		o.Borrow, o.CloseIn = s.copy.inject.Borrow, s.copy.inject.CloseIn
	}
	s.copy.c = ahead.New(o)
	if s.aheadPacked {
		var err error
		if s.copy.pack, err = pagesrv.NewPacking(s.opt.Compress); err != nil {
			return err
		}
	}
	began := time.Now()
	done := make(chan error, 1)
	go func() { done <- s.copy.run() }()
	frames := s.sess.frames
	giveUp := func(err error) {
		cancel(err)
		frames = nil
	}
	for {
		select {
		case f, ok := <-frames:
			switch {
			case !ok:
				giveUp(s.sess.err)
				s.sess.c.Close() // who sends waits no longer
			case f.h.Type == wire.MsgDial:
				var m dialMsg
				if err := decode(f.p, &m); err != nil {
					giveUp(err)
					continue
				}
				s.dialed(context.WithoutCancel(ctx), m)
			case f.h.Type == wire.MsgClock:
				select {
				case s.copy.echo <- struct{}{}:
				default:
				}
			case f.h.Type == wire.MsgError:
				giveUp(wire.ParseError(f.p))
			default:
				giveUp(fmt.Errorf("peer says message %d while memory is copied ahead", f.h.Type))
			}
		case t := <-s.copy.tell:
			s.event(Event{Event: "ahead", AheadBytes: t.sent, Rounds: t.rounds, LeftBytes: t.dirty})
		case err := <-done:
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			if err != nil {
				return err
			}
			s.copy.ctx = whole
			if err := s.copy.inject.Close(); err != nil {
				s.log.Warn("end injector", "err", err) // killed, then; it has done its work
			}
			if e := s.copy.why; e != nil {
				s.times.Mode, s.times.Forecast = e.Mode, e.Forecast
				s.event(*e)
			}
			if s.mode == ModePost {
				s.copy.close()
				s.copy = nil
				return nil
			}
			t := s.copy.times
			s.times.AheadMS, s.times.AheadBytes, s.times.Rounds = ms(time.Since(began)), t.sent, t.rounds
			s.times.BytesSent += s.copy.onLine
			s.event(Event{Event: "ahead", AheadBytes: t.sent, Rounds: t.rounds, LeftBytes: t.dirty, AheadMS: s.times.AheadMS, Text: t.stopped})
			return nil
		}
	}
}

// compares says whether pages are compared after the freeze, because their writes are not tracked. The comparison is part of the pause.
func (s *Source) compares() bool {
	return s.opt.Track == TrackHash || s.opt.Track != TrackWP && !ahead.Supported()
}

// tree lists the processes that there are.
func (s *Source) tree() ([]ahead.Process, error) {
	if err := s.dump.Look(); err != nil {
		return nil, err
	}
	var all []ahead.Process
	for _, t := range s.dump.Tasks() {
		all = append(all, ahead.Process{ID: t.ID, PID: t.PID})
	}
	return all, nil
}

// run makes rounds until no other one pays; then the tree is looked at anew for the freeze.
func (c *copying) run() error {
	s := c.s
	if s.mode == ModeAuto {
		if err := c.choose(); err != nil {
			return err
		}
		if s.mode == ModePost {
			return s.dump.Renew()
		}
	}
	for before := ^uint64(0); ; {
		if err := c.c.Track(s.tree); err != nil {
			return err
		}
		r, err := c.c.Round(c.ctx)
		if err != nil {
			return err
		}
		for _, pid := range r.Excluded {
			s.log.Info("process is not copied ahead: it has a file open with O_DIRECT", "pid", pid)
		}
		// What is on its way when the tree is frozen would hold up its images.
		began := time.Now()
		if err := c.arrived(); err != nil {
			return err
		}
		r.Took += time.Since(began)
		t := &c.times
		t.rounds++
		if r.Sent > 0 {
			t.rate = max(t.rate, float64(r.Sent)/max(r.Took-2*s.clock.err, time.Microsecond).Seconds())
		}
		park.At(s.log, "ahead")
		if t.dirty, err = c.c.Dirty(s.hot.count()); err != nil {
			return err
		}
		s.hot.wrote(t.dirty, s.rep.Tree.MemoryPresent)
		select {
		case c.tell <- *t:
		default: // the one before has not been told yet
		}
		if t.stopped = c.enough(r, before); t.stopped != "" {
			break
		}
		before = t.dirty
		if s.mode == ModePre && r.Took < restTime/4 {
			select {
			case <-time.After(restTime / 4):
			case <-c.ctx.Done():
				return context.Cause(c.ctx)
			}
		}
	}
	return s.dump.Renew()
}

// enough says why no other round is made; empty: one is.
func (c *copying) enough(r ahead.Round, before uint64) string {
	t := &c.times
	if c.s.mode == ModePre {
		takes := time.Duration(float64(t.dirty) / max(t.rate, 1) * float64(time.Second))
		switch {
		case t.dirty == 0 || takes <= c.s.opt.MaxDowntime:
			return fmt.Sprintf("what is left takes %d ms", takes.Milliseconds())
		case t.rounds >= mostPreRounds:
			return fmt.Sprintf("after %d rounds what is left still takes %d ms", t.rounds, takes.Milliseconds())
		case t.rounds > 3 && float64(t.dirty) > shrinks*float64(before):
			return fmt.Sprintf("it is written as fast as it is sent: what is left takes %d ms", takes.Milliseconds())
		}
		return ""
	}
	switch {
	case t.dirty <= littleLeft:
		return "little has been written meanwhile"
	case t.rounds >= mostRounds:
		return "enough rounds"
	case float64(t.dirty) > worthwhile*float64(r.Sent):
		return "it is written as fast as it is sent"
	}
	return ""
}

// send is the copier's.
func (c *copying) send(b ahead.Batch) error {
	c.head = encodeAhead(&b, c.head)
	c.times.sent += uint64(len(b.Data))
	data, flags := b.Data, uint16(0)
	if c.pack != nil {
		data, flags = c.pack.Pack(b.Data)
	}
	began := time.Now()
	c.s.budget.Memory(c.ctx.Done(), len(data))
	c.onLine += uint64(len(data))
	err := c.s.sess.sendFlagged(wire.MsgAhead, flags, c.head, data)
	if c.pack != nil {
		c.pack.Sent(len(data), time.Since(began))
	}
	return err
}

// close ends the tracking.
func (c *copying) close() {
	if c == nil {
		return
	}
	c.wg.Wait()
	_ = c.inject.Close() // told before, or its work is not used
	if c.c != nil {
		c.c.Close()
	}
}

// goodAhead finds, beside the transfer, what of the copies is good. The tree is frozen.
func (s *Source) goodAhead() {
	if s.copy == nil {
		return
	}
	s.good = make(chan goodResult, 1)
	if s.mode == ModePre {
		return // not before what is left has been sent
	}
	s.copy.wg.Go(s.findGood)
}

// findGood asks the tracking.
func (s *Source) findGood() {
	var all []ahead.Process
	for _, t := range s.result.Tasks {
		all = append(all, ahead.Process{ID: t.ID, PID: t.PID})
	}
	var g goodPages
	bytes, err := s.copy.c.Good(all, func(id uint32, addr, mask uint64) error {
		g.add(id, addr, mask)
		return nil
	})
	s.good <- goodResult{&g, bytes, err}
}

// goodResult is what goodAhead finds.
type goodResult struct {
	pages *goodPages
	bytes uint64
	err   error
}

// sendGood sends what is left, in the mode in which nothing may come later, and tells the target what is good. If that can't be found out nothing is good: that is slower, and never wrong.
func (s *Source) sendGood() error {
	if s.good == nil {
		return nil
	}
	if s.mode == ModePre {
		before := s.copy.onLine
		if _, err := s.copy.c.Round(s.copy.ctx); err != nil {
			return err
		}
		s.times.BytesSent += s.copy.onLine - before
		s.findGood()
	}
	r := <-s.good
	if r.err != nil {
		s.notice("what was copied ahead is not used: %v", r.err)
		r.pages, r.bytes = &goodPages{}, 0
	}
	s.times.AheadGood = r.bytes
	return r.pages.send(s.sess)
}
