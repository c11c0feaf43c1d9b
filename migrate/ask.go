package migrate

import (
	"context"
	"fmt"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/wire"
)

// askSession opens a control connection that has no migration.
func askSession(ctx context.Context, addr, tlsDir string) (*session, error) {
	k, err := keys.Load(tlsDir)
	if err != nil {
		return nil, err
	}
	d := &dialer{addr: addr, keys: k, id: wire.NewID()}
	c, err := d.dial(ctx, wire.LaneControl)
	if err != nil {
		return nil, err
	}
	return newSession(c, nil), nil
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
