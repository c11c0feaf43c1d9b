package migrate

import (
	"context"
	"fmt"
	"time"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/wire"
)

// AskFacts asks an agent what its host can do, and how far its clock is ahead of ours (at most clockErr wrong).
func AskFacts(ctx context.Context, addr, tlsDir string) (there preflight.Facts, ahead, clockErr time.Duration, err error) {
	k, err := keys.Load(tlsDir)
	if err != nil {
		return there, 0, 0, err
	}
	d := &dialer{addr: addr, keys: k, id: wire.NewID()}
	c, err := d.dial(ctx, wire.LaneControl)
	if err != nil {
		return there, 0, 0, err
	}
	s := newSession(c, nil)
	defer s.close()
	if there, err = askFacts(ctx, s); err != nil {
		return there, 0, 0, err
	}
	off, err := measureClock(ctx, s)
	return there, off.offset, off.err, err
}

// askFacts asks on a control connection that has no migration yet.
func askFacts(ctx context.Context, s *session) (there preflight.Facts, err error) {
	if err := s.send(wire.MsgCheck, nil); err != nil {
		return there, err
	}
	if err := s.await(ctx, wire.MsgCheckAns, &there, checkTime, nil); err != nil {
		return there, fmt.Errorf("ask target what it can do: %w", err)
	}
	return there, nil
}
