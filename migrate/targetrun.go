package migrate

import (
	"errors"
	"time"

	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/wire"
)

// awaitGrant waits for the source's word. A lost connection is waited for: "asked" is on disk, so the source may have granted.
// An agent that follows another has no session at first.
func (t *Target) awaitGrant(s *session) (bool, error) {
	var frames chan frame
	if s != nil {
		frames = s.frames
	}
	for {
		select {
		case f, ok := <-frames:
			switch {
			case !ok:
				t.log.Warn("source is lost after the question; the tree is held until it comes back", "err", s.err)
				frames = nil
			case f.h.Type == wire.MsgGrant:
				select { // which of two is looked at is left to chance
				case e, ok := <-t.capsule.Events():
					if err := heldEnds(e, ok); err != nil {
						return false, err
					}
				default:
				}
				s.beat.Reset(pingEvery)
				t.adopt(s)
				return true, nil
			case f.h.Type == wire.MsgAbort:
				return false, errors.New("the source does not grant")
			case f.h.Type == wire.MsgClock:
				if err := answerClock(s.c, f.h, f.p); err != nil {
					t.log.Warn("answer clock", "err", err)
				}
			default:
				t.log.Warn("unexpected message while asked", "type", f.h.Type)
			}
		case n := <-t.sessions:
			if s != nil {
				s.close()
			}
			s, frames = n, n.frames
			t.greet(s)
			if n.peer.State == Aborted {
				n.close()
				return false, errors.New("the source has given up: " + n.peer.Note)
			}
			if err := s.send(wire.MsgHeld, heldMsg{RestoreMS: t.restoreMS, FillMS: t.fillMS}); err != nil {
				t.log.Warn("ask for the grant", "err", err)
			}
			t.askAgain(s)
		case <-t.lanes.some:
			if frames == nil {
				t.laneSaid(nil)
			} else {
				t.laneSaid(s)
			}
		case e, ok := <-t.capsule.Events():
			if err := heldEnds(e, ok); err != nil {
				return false, err
			}
			t.early(&e)
		case <-t.stop:
			return false, errors.New("the agent ends; the tree that it held is killed and never ran")
		}
	}
}

// heldEnds says whether what a capsule tells is the end of the tree that it held.
func heldEnds(e restore.Event, ok bool) error {
	switch {
	case !ok || e.Kind == restore.EventExited:
		return errors.New("the capsule has ended before the grant")
	case e.Kind == restore.EventNeverRuns:
		return errors.New(e.Text)
	}
	return nil
}

// adopt keeps the session for what follows.
func (t *Target) adopt(s *session) {
	if t.cur != nil && t.cur != s {
		t.cur.close()
	}
	t.cur = s
	if t.State().Handed() && !t.State().Final() {
		t.sourceIs(s != nil)
	}
	t.stdio.streams().attach(s)
}

// greet tells a returning source where this side stands, and what it may have missed.
func (t *Target) greet(s *session) {
	err := s.send(wire.MsgState, stateMsg{State: t.State()})
	if err == nil && t.resumed != nil {
		err = s.send(wire.MsgResumed, t.resumed)
	}
	if err == nil && t.drained != nil {
		err = s.send(wire.MsgDrained, t.drained)
	}
	if err == nil && t.stays != nil {
		err = s.send(wire.MsgStays, t.stays)
	}
	if err == nil && t.detached != nil {
		err = s.send(wire.MsgDetached, t.detached)
	}
	if err == nil && t.told {
		err = s.send(wire.MsgExited, t.exited)
	}
	if err != nil {
		t.log.Warn("greet source", "err", err) // it will come again
	}
}

// whileRunning is resumed … ended: the tree runs here, whatever happens to the connection.
func (t *Target) whileRunning() error {
	if t.State() == Granted {
		park.At(t.log, "resumed")
		if err := t.enter(Resumed, ""); err != nil {
			t.log.Error("the tree runs, but that could not be recorded", "err", err)
		}
		t.log.Info("tree runs here", "audit", true, "from", t.msg.Host, "tree", t.msg.Comm, "pid", t.resumed.PID)
	}
	t.stdio.start()
	t.sourceIs(t.cur != nil)
	t.tell(wire.MsgResumed, t.resumed)
	park.At(t.log, "drain")
	if t.State() == Drained {
		t.startDetach() // which an agent before this one has not come to
	}
	t.passHot()
	if err := t.capsule.StartDrain(false); err != nil {
		t.log.Error("start drain", "err", err)
	}
	if t.filled != nil {
		t.event(*t.filled)
	}
	return t.attend(nil, t.capsule.Events(), t.stop)
}

// event handles what the capsule tells.
func (t *Target) event(e restore.Event) {
	switch e.Kind {
	case restore.EventProgress, restore.EventDrained:
		if t.resumed == nil { // an agent before this one has filled the tree, and then asked: see whileRunning
			t.early(&e)
			return
		}
		m := t.progressOf(&e)
		t.writeStatus(m)
		if e.Kind == restore.EventProgress {
			t.tell(wire.MsgProgress, m)
			return
		}
		t.drained = m
		if t.State() == Drained { // an agent before this one was told, too
			return
		}
		park.At(t.log, "full")
		if err := t.enter(Drained, ""); err != nil {
			t.log.Error("record drained", "err", err)
		}
		t.log.Info("drained", "faults", e.Stats.Faults, "bytes", e.Stats.BytesCopied)
		t.tell(wire.MsgDrained, m)
		t.startDetach()
	case restore.EventProblem:
		t.log.Error("capsule", "problem", e.Text)
	case restore.EventCore:
		t.log.Warn("core dump", "what", e.Text)
		if len(t.cores) < maxCores {
			t.cores = append(t.cores, trim(e.Text))
		}
	case restore.EventExited:
		t.exited = &exitedMsg{Status: e.Status} // others of the tree may live on
	}
}

// tell sends if there is a connection; greet says it again to the next one.
func (t *Target) tell(m wire.Type, v any) {
	if t.cur == nil {
		return
	}
	if err := t.cur.send(m, v); err != nil {
		t.log.Warn("tell source", "message", m, "err", err)
	}
}

const endTime = 5 * time.Second

// ended is after the end of the tree: all is taken away while files are still served, then the source is told, so that it may stop.
func (t *Target) ended() error {
	if t.exited == nil {
		t.exited = &exitedMsg{Status: -1}
	}
	t.exited.Cores = t.cores
	_ = t.cleanUp()     // told there; the tree has ended
	if !t.source.lost { // nobody would take it
		t.flushStdio()
	}
	t.told = true
	t.log.Info("the tree has ended", "status", t.exited.Status)
	err := t.enter(Ended, t.endNote())
	t.tell(wire.MsgExited, t.exited)
	if t.cur == nil {
		return err
	}
	late := time.After(endTime)
	for {
		select {
		case f, ok := <-t.cur.frames:
			if !ok || f.h.Type == wire.MsgEnd {
				return err
			}
		case <-late:
			return err
		}
	}
}
