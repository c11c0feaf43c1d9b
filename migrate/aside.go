package migrate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/wire"
)

// Restoring and letting go touch memory and files that come over the lanes. A lane that is lost meanwhile has to be asked for, or they wait
// for ever: so they run aside, in a goroutine, while the state machine goes on listening.

// laneSaid handles what has become of lanes; true: some are missing.
func (t *Target) laneSaid(s *session) bool {
	missing, come := t.lanes.take()
	for _, l := range come {
		delete(t.missing, l)
	}
	t.askFor(s, missing...)
	return len(missing) > 0
}

// askFor asks the source for lanes, on s if there is a connection, else it is done when there is one.
func (t *Target) askFor(s *session, lanes ...wire.Lane) {
	for _, l := range lanes {
		t.missing[l] = true
	}
	if s == nil || len(lanes) == 0 {
		return
	}
	if err := s.send(wire.MsgDial, dialMsg{Lanes: lanes}); err != nil {
		t.log.Warn("ask for lanes", "err", err) // asked again on the next connection
	}
}

// askAgain asks for all that is missing.
func (t *Target) askAgain(s *session) { t.askFor(s, slices.Sorted(maps.Keys(t.missing))...) }

// beforeGrantAside runs fn, which may be given up: when the source is lost, gives up itself, or does not bring a lost lane back.
func (t *Target) beforeGrantAside(ctx context.Context, s *session, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var cause error
	giveUp := func(err error) {
		if cause == nil {
			cause = err
			cancel(err)
			t.fuse.Close() // what waits for a file can't be killed before
		}
	}
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	frames := s.frames
	late := time.NewTimer(dialTimeout)
	defer late.Stop()
	for {
		select {
		case err := <-done:
			if cause != nil {
				return cause
			}
			return err
		case f, ok := <-frames:
			switch {
			case !ok:
				giveUp(fmt.Errorf("source is lost before the grant: %w", s.err))
				frames = nil
			case f.h.Type == wire.MsgAbort:
				giveUp(errors.New("the source gave up"))
			case f.h.Type == wire.MsgClock:
				if err := answerClock(s.c, f.h, f.p); err != nil {
					t.log.Warn("answer clock", "err", err)
				}
			case f.h.Type == wire.MsgAhead:
				if err := t.ahead.pages(f.h.Flags, f.p); err != nil {
					giveUp(err)
				}
			case f.h.Type == wire.MsgAheadGood:
				if err := t.ahead.mark(f.p); err != nil {
					giveUp(err)
				}
			default:
				t.log.Warn("unexpected message while the tree is restored", "type", f.h.Type)
			}
		case <-t.lanes.some:
			if t.laneSaid(s) {
				late.Reset(dialTimeout)
			}
		case <-late.C:
			if len(t.missing) > 0 {
				giveUp(fmt.Errorf("lanes %v are lost before the grant", slices.Sorted(maps.Keys(t.missing))))
			}
		case <-t.stop:
			giveUp(errors.New("the agent ends"))
		}
	}
}

// afterGrantAside runs fn, which is never given up: it waits for the source if need be.
func (t *Target) afterGrantAside(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	return t.attend(done, nil, nil)
}

// attend answers the source, takes it back when it returns, and asks for lost lanes, after the grant; until done says how it went, the
// capsule's events end, or stop is closed. A channel that is nil is not listened to.
func (t *Target) attend(done <-chan error, events <-chan restore.Event, stop <-chan struct{}) error {
	for {
		select {
		case err := <-done:
			return err
		case e, ok := <-events:
			if !ok { // the last process has ended, and with it the guardian
				return t.ended()
			}
			t.event(e)
		case <-t.lossDue():
			t.sourceLost()
		case <-stop:
			t.keep = true
			if t.detached != nil {
				return errors.New("the agent ends; the tree needs none")
			}
			return errors.New("the agent ends while the tree runs; it goes on, and waits for pages and files that are not here")
		case f, ok := <-t.frames():
			t.ranFrame(f, ok)
		case m := <-t.detachFiles():
			t.tell(wire.MsgFiles, m)
		case r := <-t.detachEnds():
			t.detachEnded(r)
		case s := <-t.sessions:
			t.adopt(s)
			t.greet(s)
			t.askAgain(s)
		case <-t.lanes.some:
			t.laneSaid(t.cur)
		}
	}
}

// frames are those of the session, none while the source is away.
func (t *Target) frames() chan frame {
	if t.cur == nil {
		return nil
	}
	return t.cur.frames
}

// ranFrame handles what came from frames after the grant.
func (t *Target) ranFrame(f frame, ok bool) {
	if !ok {
		if t.detached != nil {
			t.log.Info("source has ended")
			t.adopt(nil)
			return
		}
		t.log.Warn("source is lost; the tree goes on with what is here and waits for the rest", "err", t.cur.err)
		t.adopt(nil)
		return
	}
	if f.h.Type == wire.MsgClock {
		if err := answerClock(t.cur.c, f.h, f.p); err != nil {
			t.log.Warn("answer clock", "err", err)
		}
	}
}
