package migrate

import (
	"context"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// --mode auto: measured while the tree runs and before anything is copied ahead. What is sent to measure the line is memory that would be sent anyway.

const worthChoosing = 64 << 20 // less memory follows before anything is measured

// chosen notes what auto has come to without measuring.
func (s *Source) chosen(mode, why string) error {
	s.mode, s.times.Mode = mode, mode
	s.event(Event{Event: "chosen", Mode: mode, Text: why})
	return nil
}

// choose measures, and picks the mode with the best forecast.
func (c *copying) choose() error {
	s := c.s
	f := conditions{memory: float64(s.rep.Tree.MemoryPresent), room: float64(s.aheadRoom), allowed: s.opt.MaxDowntime, compared: s.compares()}
	g := gauge{c: c.c, tree: s.tree, line: c.line, trip: 2 * s.clock.err}
	if err := g.look(c.ctx, &f); err != nil {
		return err
	}
	best := f.best()
	s.mode = best.Mode
	c.why = &Event{Event: "chosen", Mode: best.Mode, Forecast: &best, Measured: f.measured(), Text: f.String()}
	return nil
}

// line is the gauge's: it sends memory.
func (c *copying) line(bytes uint64) (uint64, time.Duration, error) {
	began := time.Now()
	r, err := c.c.Some(c.ctx, bytes)
	if err == nil {
		err = c.arrived()
	}
	return r.Sent, time.Since(began), err
}

// arrived waits until the target has all that was sent: it answers in order.
func (c *copying) arrived() error {
	if err := c.s.sess.send(wire.MsgClock, clockMsg{Sent: time.Now().UnixNano()}); err != nil {
		return err
	}
	select {
	case <-c.echo:
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}
