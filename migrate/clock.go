package migrate

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// clockOffset is how far the target's wall clock is ahead of ours, as the exchange with the shortest round trip shows.
type clockOffset struct {
	offset time.Duration
	err    time.Duration // at most this wrong: half that round trip
}

const (
	clockRounds = 8
	clockTime   = 5 * time.Second
)

// here converts the target's wall clock, in ns, to ours.
func (c clockOffset) here(there int64) time.Time { return time.Unix(0, there).Add(-c.offset) }

func measureClock(ctx context.Context, s *session) (clockOffset, error) {
	best := clockOffset{err: time.Hour}
	for range clockRounds {
		sent := time.Now()
		if err := s.send(wire.MsgClock, clockMsg{Sent: sent.UnixNano()}); err != nil {
			return best, err
		}
		var m clockMsg
		if err := s.await(ctx, wire.MsgClock, &m, clockTime, nil); err != nil {
			return best, fmt.Errorf("compare clocks: %w", err)
		}
		if half := time.Since(sent) / 2; half < best.err {
			best = clockOffset{offset: time.Duration(m.Here - sent.UnixNano() - half.Nanoseconds()), err: half}
		}
	}
	return best, nil
}

func newToken() (t wire.Token) {
	_, _ = rand.Read(t[:]) // never fails
	return t
}
