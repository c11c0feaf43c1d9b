package migrate

import (
	"context"
	"fmt"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// --mode auto: measured while the tree runs and before anything is copied ahead. What is sent to measure the line is memory that would be sent anyway.

const (
	worthChoosing = 64 << 20 // less memory follows before anything is measured
	writesTime    = 250 * time.Millisecond
	lineBytes     = 16 << 20
)

// chosen notes what auto has come to without measuring.
func (s *Source) chosen(mode, why string) error {
	s.mode, s.times.Mode = mode, mode
	s.event(Event{Event: "chosen", Mode: mode, Text: why})
	return nil
}

// choose measures, and picks the mode with the best forecast.
func (c *copying) choose() error {
	s := c.s
	if err := c.c.Track(s.tree); err != nil {
		return err
	}
	if err := c.c.Protect(); err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-time.After(writesTime):
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	dirty, err := c.c.Dirty()
	if err != nil {
		return err
	}
	writes := float64(dirty) / time.Since(began).Seconds()
	trip := 2 * s.clock.err
	began = time.Now()
	r, err := c.c.Some(c.ctx, lineBytes)
	if err != nil {
		return err
	}
	// When this is answered all has arrived.
	if err := s.sess.send(wire.MsgClock, clockMsg{Sent: began.UnixNano()}); err != nil {
		return err
	}
	select {
	case <-c.echo:
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	took := max(time.Since(began)-trip, time.Microsecond)
	f := conditions{
		memory: float64(s.rep.Tree.MemoryPresent), room: float64(s.aheadRoom), rate: max(float64(r.Sent), pageSize) / took.Seconds(), writes: writes, trip: trip, allowed: s.opt.MaxDowntime,
	}
	best := f.best()
	s.mode = best.Mode
	c.why = &Event{
		Event: "chosen", Mode: best.Mode, Forecast: &best,
		Text: fmt.Sprintf("%d MB a second are written of %d MB, and the line takes %d", int(writes)>>20, s.rep.Tree.MemoryPresent>>20, int(f.rate)>>20),
	}
	return nil
}
