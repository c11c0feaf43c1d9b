package migrate

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestLanesAtGrant: a lane that is being dialed when the tree is granted is still dialed after that, and so is one that could not be: the target has asked for both, and asks
// no more.
func TestLanesAtGrant(t *testing.T) {
	kerneltest.Leaks(t)
	_, k := newAgent(t, time.Minute)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	come := make(chan net.Conn)
	go func() {
		defer close(come)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			come <- c
		}
	}()
	next := func() net.Conn {
		t.Helper()
		select {
		case c := <-come:
			return c
		case <-time.After(kerneltest.Patience):
			t.Fatal("nobody dials")
			return nil
		}
	}
	s := &Source{log: slog.New(slog.DiscardHandler), d: &dialer{addr: ln.Addr().String(), keys: k}}
	ctx, cancel := context.WithCancel(t.Context())
	s.lanes.dial(ctx, s, []wire.Lane{wire.LaneUrgent})
	next().Close()
	kerneltest.Eventually(t, "the lane to have failed", func() bool {
		s.lanes.mu.Lock()
		defer s.lanes.mu.Unlock()
		return s.lanes.failed[wire.LaneUrgent]
	})
	s.lanes.dial(ctx, s, []wire.Lane{wire.LaneBulk})
	dialing := next()
	cancel() // as the context of what comes before the grant
	s.lanes.granted(t.Context(), s)
	again := next()
	defer again.Close() // the urgent lane's
	dialing.Close()
	defer next().Close()
	s.lanes.close()
}
