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
	next := func(want wire.Lane) net.Conn {
		t.Helper()
		late := time.After(kerneltest.Patience)
		for {
			select {
			case c := <-come:
				t.Cleanup(func() { c.Close() })
				if p, err := wire.ReadPreamble(c); err != nil {
					t.Error(err)
				} else if p.Lane == want {
					return c
				}
			case <-late:
				t.Fatalf("nobody dials the lane %v", want)
			}
		}
	}
	s := &Source{log: slog.New(slog.DiscardHandler), d: &dialer{addr: ln.Addr().String(), keys: k}}
	ctx, cancel := context.WithCancel(t.Context())
	s.lanes.dial(ctx, s, []wire.Lane{wire.LaneUrgent})
	next(wire.LaneUrgent).Close()
	kerneltest.Eventually(t, "the lane to have failed", func() bool {
		s.lanes.mu.Lock()
		defer s.lanes.mu.Unlock()
		return s.lanes.failed[wire.LaneUrgent]
	})
	s.lanes.dial(ctx, s, []wire.Lane{wire.LaneBulk})
	dialing := next(wire.LaneBulk)
	cancel() // as the context of what comes before the grant
	s.lanes.granted(t.Context(), s)
	next(wire.LaneUrgent)
	dialing.Close()
	next(wire.LaneBulk)
	s.lanes.close()
}
