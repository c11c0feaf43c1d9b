package migrate

import (
	"net"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestClock measures a target whose wall clock is far ahead: its times become ours, to within the error that is told.
func TestClock(t *testing.T) {
	kerneltest.Leaks(t)
	const ahead = 1000 * time.Second
	a, b := net.Pipe()
	s, peer := newSession(wire.NewConn(a), nil), newSession(wire.NewConn(b), nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for f := range peer.frames {
			var m clockMsg
			if decode(f.p, &m) == nil {
				m.Here = time.Now().Add(ahead).UnixNano()
				_ = peer.c.Send(wire.MsgClock, 0, f.h.ID, encode(m)) // else the measurement fails
			}
		}
	}()
	c, err := measureClock(t.Context(), s)
	now := time.Now()
	if err != nil {
		t.Fatal(err)
	}
	if off := c.here(now.Add(ahead).UnixNano()).Sub(now); off.Abs() > c.err || c.err <= 0 || c.err > time.Minute {
		t.Errorf("a moment of the target is %v beside ours, and is said to be at most %v", off, c.err)
	}
	s.close()
	peer.close()
	<-done
}
