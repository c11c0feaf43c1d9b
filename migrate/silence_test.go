package migrate

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// lossLimit is how long a tree may stand still because of a target that is gone; the thaw needs some of it.
const lossLimit = 2*time.Second - 300*time.Millisecond

// watched gives a session that is watched, and the target's end of its connection.
func watched(t *testing.T) (s *session, peer net.Conn, ctx context.Context) {
	a, b := net.Pipe()
	s = newSession(wire.NewConn(a), nil)
	s.beat.Stop() // synctest's clock stands while a ping waits for the lock of a frame that is on its way
	t.Cleanup(func() { b.Close(); s.close() })
	ctx, stop := s.watch(t.Context())
	t.Cleanup(stop)
	return s, b, ctx
}

// living gives the target's session, which pings.
func living(t *testing.T, peer net.Conn) *session {
	target := newSession(wire.NewConn(peer), nil)
	target.beat.Reset(watchedPing)
	t.Cleanup(target.close)
	return target
}

// TestSilentTarget: a target that takes what is sent and says nothing, and one that does not even take it, are given up in time.
func TestSilentTarget(t *testing.T) {
	takes := func(c net.Conn) {
		b := make([]byte, 1<<10)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}
	waits := func(ctx context.Context, s *session) error {
		return s.await(ctx, wire.MsgHeld, &heldMsg{}, restoreTime, nil)
	}
	sends := func(ctx context.Context, s *session) error {
		if err := s.c.Send(wire.MsgImages, 0, 0, make([]byte, 64<<10)); err != nil {
			return context.Cause(ctx)
		}
		return errors.New("it was sent")
	}
	for name, c := range map[string]struct {
		target func(net.Conn)
		source func(context.Context, *session) error
	}{
		"restores": {takes, waits},
		"takes":    {func(net.Conn) {}, sends},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, peer, ctx := watched(t)
				go c.target(peer)
				began := time.Now()
				err := c.source(ctx, s)
				if gone := time.Since(began); gone > lossLimit {
					t.Errorf("noticed after %v", gone)
				}
				if err == nil || !strings.Contains(err.Error(), "said nothing") {
					t.Errorf("the error is %v", err)
				}
				if err := s.send(wire.MsgAbort, nil); err == nil || time.Since(began) > lossLimit {
					t.Errorf("a word more ends after %v with %v", time.Since(began), err)
				}
			})
		})
	}
}

// TestGoneInTheMiddle: it is noticed as soon if the target was there before.
func TestGoneInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, peer, ctx := watched(t)
		target := living(t, peer)
		time.Sleep(10 * time.Second) //nolint:forbidigo // of synctest's clock
		if ctx.Err() != nil {
			t.Fatal("lost while it was there")
		}
		target.beat.Stop() // as on a host without power, whose connections stay
		began := time.Now()
		<-ctx.Done()
		if gone := time.Since(began); gone > lossLimit {
			t.Errorf("noticed after %v", gone)
		}
	})
}

// TestSlowRestore: one that takes nearly all the time that it may is waited for.
func TestSlowRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, peer, ctx := watched(t)
		target := living(t, peer)
		go func() {
			time.Sleep(restoreTime - time.Second)                //nolint:forbidigo // of synctest's clock
			_ = target.send(wire.MsgHeld, heldMsg{RestoreMS: 1}) // await tells
		}()
		if err := s.await(ctx, wire.MsgHeld, &heldMsg{}, restoreTime, nil); err != nil {
			t.Error(err)
		}
	})
}

// TestSlowLink: so is an image that crawls.
func TestSlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, peer, ctx := watched(t)
		c := wire.NewConn(peer)
		var others sync.WaitGroup
		defer others.Wait()
		defer peer.Close()
		others.Go(func() {
			for c.Send(wire.MsgPong, 0, 0) == nil { // a ping would be answered: see synctest's clock
				time.Sleep(watchedPing) //nolint:forbidigo // of synctest's clock
			}
		})
		others.Go(func() {
			b := make([]byte, 1<<10)
			for {
				if _, err := peer.Read(b); err != nil {
					return
				}
				time.Sleep(time.Second) //nolint:forbidigo // of synctest's clock
			}
		})
		began := time.Now()
		err := s.c.Send(wire.MsgImages, 0, 0, make([]byte, 64<<10))
		if err != nil || ctx.Err() != nil || time.Since(began) < 10*lossLimit {
			t.Errorf("after %v: %v, %v", time.Since(began), err, context.Cause(ctx))
		}
	})
}

// TestPingWhileSending: what the peer says is heard while a frame is on its way that does not come to an end.
func TestPingWhileSending(t *testing.T) {
	a, b := net.Pipe()
	s := newSession(wire.NewConn(a), nil)
	sent := make(chan error, 1)
	go func() { sent <- s.c.Send(wire.MsgImages, 0, 0, make([]byte, 64<<10)) }()
	if _, err := b.Read(make([]byte, 1)); err != nil { // it is on its way
		t.Fatal(err)
	}
	peer := wire.NewConn(b)
	for range 3 {
		if err := peer.Send(wire.MsgPing, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := peer.Send(wire.MsgHeld, 0, 0, encode(heldMsg{})); err != nil {
		t.Fatal(err)
	}
	if err := s.await(t.Context(), wire.MsgHeld, &heldMsg{}, restoreTime, nil); err != nil {
		t.Error(err)
	}
	b.Close()
	<-sent
	s.close()
}

// TestBusyAgent: what an agent looks up before a migration may take longer than a silent one is waited for.
func TestBusyAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		s := newSession(wire.NewConn(a), nil)
		s.beat.Stop()
		c := wire.NewConn(b)
		go func() {
			facts := whileAlive(c, func() heldMsg {
				time.Sleep(3 * silence) //nolint:forbidigo // of synctest's clock
				return heldMsg{RestoreMS: 1}
			})
			_ = c.Send(wire.MsgHeld, 0, 0, encode(facts)) // await tells
		}()
		var m heldMsg
		if err := s.await(t.Context(), wire.MsgHeld, &m, 10*silence, nil); err != nil || m.RestoreMS != 1 {
			t.Errorf("%+v, %v", m, err)
		}
		s.close()
		b.Close()
	})
}
