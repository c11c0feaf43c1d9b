package migrate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/wire"
)

// whileServing is granted … ended: the tree is frozen here for good, and served to the target until that has all of it.
func (s *Source) whileServing(ctx context.Context) error {
	s.files.Grant()
	s.lanes.granted(ctx, s)
	s.startRelay()
	s.sess.carry(s.relay)
	park.At(s.log, "granted")
	if err := s.sess.send(wire.MsgGrant, nil); err != nil {
		s.log.Warn("send grant; it is said again", "err", err)
	}
	s.relay.attach(s.sess)
	s.dropSockets()
	return s.serveOn(ctx)
}

// serveOn serves until the tree has ended. Without a session it makes one.
func (s *Source) serveOn(ctx context.Context) error {
	s.confineServing()
	s.later(disableUnit)
	wait, born := backoffMin, time.Now()
	for {
		if s.sess == nil {
			if err := s.reconnect(ctx, wait); err != nil {
				return s.lost(err)
			}
			born = time.Now()
			s.relay.attach(s.sess)
		}
		f, ok := <-s.sess.frames
		if !ok {
			s.log.Warn("target is lost; the tree stays frozen here and is served when it comes back", "err", s.sess.err)
			s.relay.attach(nil)
			s.sess.close()
			s.sess = nil
			s.away(time.Now())
			if wait = min(2*wait, backoffMax); time.Since(born) > silence { // it was a connection that held
				wait = backoffMin
			}
			continue
		}
		end, err := s.handle(ctx, f)
		if errors.Is(err, errMessage) { // nothing is decided by a message that can't be read
			s.log.Error("message of the target", "type", f.h.Type, "err", err)
			s.sess.c.Close()
			continue
		}
		switch {
		case errors.Is(err, errNeverRan):
			return s.takeBack(err)
		case err != nil:
			return s.lost(err)
		case end:
			return nil
		}
	}
}

func (s *Source) away(t time.Time) {
	s.mu.Lock()
	s.since = t
	s.mu.Unlock()
}

// lost ends serving after the grant: nobody runs the tree any more, or can.
func (s *Source) lost(cause error) error {
	err := errors.Join(cause, s.enter(LostTree, cause.Error()))
	s.event(Event{Event: "failed", Stage: "drain", Error: err.Error(), SourceState: "frozen"})
	return err
}

// errNeverRan is the target's proof: what it held is dead and was never let go, and "aborted" is on its disk.
var errNeverRan = errors.New("the target has given the tree up before it ran there")

// takeBack lets the tree run here again, after the target's proof. Not when its standard streams are carried: what has been read from them is not there any
// more. Then a person decides, who has `recover --resume-source`.
func (s *Source) takeBack(proof error) error {
	if s.relay != nil {
		return s.lost(fmt.Errorf("%w: the tree is frozen here and ran nowhere since", proof))
	}
	s.lanes.close()
	err := s.rec.TakeBack(proof.Error()) // durable before the first instruction
	if err != nil {
		return s.lost(errors.Join(proof, err))
	}
	s.mu.Lock()
	s.state = Aborted
	s.mu.Unlock()
	e := Event{Event: "failed", Stage: "grant", Error: proof.Error(), SourceState: "running"}
	if err := s.dump.TakeBack(s.going.Left); err != nil {
		proof = errors.Join(proof, err)
		e.Error, e.SourceState = proof.Error(), "frozen"
	} else {
		s.log.Info("tree runs here again", "audit", true, "pid", s.opt.PID, "why", proof)
		s.units.wg.Wait()
		s.later(releaseUnit)
	}
	s.event(e)
	return proof
}

// note records where the tree stands after the grant. A record that can't be written (a full disk) is told, and nothing else: the tree
// is served on.
func (s *Source) note(st State, why string) {
	if err := s.enter(st, why); err != nil {
		s.notice("the record could not be written, the migration goes on: %v", err)
		s.mu.Lock()
		s.state = st
		s.mu.Unlock()
	}
}

// reconnect waits, and dials until the target answers.
func (s *Source) reconnect(ctx context.Context, wait time.Duration) error {
	for {
		select {
		case <-time.After(wait + rand.N(wait)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		wait = min(2*wait, backoffMax)
		c, err := s.d.dial(ctx, wire.LaneControl)
		if err == nil {
			s.sess = newSession(c, s.relay)
			if err = s.sess.send(wire.MsgState, stateMsg{State: s.State(), Token: s.d.token}); err == nil {
				break
			}
			s.sess.close()
			s.sess = nil
		}
		s.log.Debug("reconnect", "err", err)
	}
	s.away(time.Time{})
	return nil // the target asks for the lanes that it has lost
}

// State is where it stands.
func (s *Source) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// handle does what one message asks for; true: the tree has ended.
func (s *Source) handle(ctx context.Context, f frame) (bool, error) {
	switch f.h.Type {
	case wire.MsgState:
		var m stateMsg
		if err := decode(f.p, &m); err != nil {
			return false, err
		}
		return s.compareStates(m)
	case wire.MsgHeld: // it did not get the grant
		if err := s.sess.send(wire.MsgGrant, nil); err != nil {
			s.log.Warn("send grant; it is said again", "err", err)
		}
	case wire.MsgDial:
		var m dialMsg
		if err := decode(f.p, &m); err != nil {
			return false, err
		}
		s.lanes.dial(ctx, s, m.Lanes)
	case wire.MsgResumed:
		var m resumedMsg
		if err := decode(f.p, &m); err != nil {
			return false, err
		}
		s.resumed(m)
	case wire.MsgProgress, wire.MsgDrained:
		var m progressMsg
		if err := decode(f.p, &m); err != nil {
			return false, err
		}
		s.tellCores(m.Cores)
		s.mu.Lock()
		s.last = m
		s.mu.Unlock()
		if f.h.Type == wire.MsgDrained {
			s.drained(m)
			return false, nil
		}
		s.event(Event{Event: "progress", LeftBytes: m.Left, BytesSent: m.Copied, Faults: m.Faults, FaultP50US: m.FaultP50US, FaultP99US: m.FaultP99US, StallMS: m.StallMS, Prefetched: m.Prefetched, PrefetchHit: m.PrefetchHits})
	case wire.MsgFiles:
		var m filesMsg
		if err := decode(f.p, &m); err != nil {
			return false, err
		}
		s.event(Event{Event: "files", FilesHere: m.Here, FilesLeft: m.Left, FileBytes: m.Size})
	case wire.MsgStays:
		var m staysMsg
		if err := decode(f.p, &m); err != nil {
			return false, err
		}
		s.stays(m)
	case wire.MsgDetached:
		var m detachedMsg
		if err := decode(f.p, &m); err != nil {
			return false, err
		}
		s.detached(m)
		return true, nil
	case wire.MsgExited:
		var m exitedMsg
		if err := decode(f.p, &m); err != nil {
			return false, err
		}
		s.exited(m)
		return true, nil
	case wire.MsgError: // it gives up: what has become of the tree it says when it is asked, and has it on disk
		s.log.Warn("the target gives up", "err", wire.ParseError(f.p))
		s.sess.c.Close()
	default:
		s.log.Warn("unexpected message of the target", "type", f.h.Type)
	}
	return false, nil
}

// compareStates reads what the target says of itself after a reconnect.
func (s *Source) compareStates(m stateMsg) (bool, error) {
	switch m.State {
	case Asked, Granted, Resumed, Drained:
		return false, nil
	case Detached:
		if m.Note == "" { // it says more at once
			return false, nil
		}
		s.detached(detachedMsg{})
		return true, nil
	case Ended:
		s.exited(exitedMsg{Status: -1})
		return true, nil
	case LostTree:
		return false, fmt.Errorf("the target has lost the tree (%s): it is frozen here", m.Note)
	case Aborted:
		return false, fmt.Errorf("%w (%s)", errNeverRan, m.Note)
	}
	return false, fmt.Errorf("the target does not know this migration any more (%s): the tree is frozen here; whether it runs there can't be told", m.Note)
}

func (s *Source) resumed(m resumedMsg) {
	if s.State() != Granted {
		return // said again
	}
	s.times.GrantMS = ms(time.Since(s.grant))
	s.times.TargetPID = m.PID
	s.times.DowntimeMS = ms(s.clock.here(m.At).Sub(s.result.FrozenAt))
	s.times.ClockErrMS = ms(s.clock.err)
	s.note(Resumed, "")
	if err := s.writeGoing(); err != nil {
		s.log.Warn("keep figures", "err", err)
	}
	e := s.times
	e.Event = "resumed"
	s.event(e)
	s.log.Info("tree runs on the target", "audit", true, "to", s.opt.To, "pid", s.opt.PID, "target_pid", m.PID)
}

// drained: all memory is there. The frozen tree goes; what its descriptors keep alive stays with the file server.
func (s *Source) drained(m progressMsg) {
	if s.State() != Resumed {
		return // said again
	}
	files, locks, err := s.hold()
	if err != nil {
		s.notice("descriptors of the tree: %v", err)
	}
	s.holdOn(files)
	park.At(s.log, "hold")
	if err := s.killTree(); err != nil {
		s.notice("the frozen tree could not be killed: %v; it never runs again, but its memory is not free", err)
	}
	s.copy.close()
	if s.pages != nil {
		s.pages.DropObjects()
	}
	if err := retake(locks); err != nil {
		s.notice("%v", err)
	}
	park.At(s.log, "drained")
	s.note(Drained, "")
	s.times.DrainMS = ms(time.Since(s.grant)) - s.times.GrantMS
	s.times.Faults, s.times.FaultP50US, s.times.FaultP99US, s.times.StallMS = m.Faults, m.FaultP50US, m.FaultP99US, m.StallMS
	s.times.HotFirst = m.Hot
	s.times.Prefetched, s.times.PrefetchHit = m.Prefetched, m.PrefetchHits
	if s.files != nil {
		st := s.files.Stats()
		s.times.Forwarded = st.Files
		s.times.BytesSent += st.Bytes
	}
	if s.pages != nil {
		st := s.pages.Stats()
		s.times.BytesSent += st.Urgent.Bytes + st.Bulk.Bytes
	}
	e := s.times
	e.Event = "drained"
	s.event(e)
	if s.opt.Until != UntilDetached {
		e.Event = "done"
		s.event(e)
	}
}

// stays: the tree stays drained, or needs no more than what is named.
func (s *Source) stays(m staysMsg) {
	if s.stayed {
		return // said again
	}
	s.stayed = true
	e := s.times
	e.Event, e.Stays = "stays", m.Reasons
	if m.Detached != nil {
		s.mu.Lock()
		s.residual = m.Reasons
		s.mu.Unlock()
		s.moved(*m.Detached)
		e = s.times
		e.Event, e.Residual = "detached", m.Reasons
		s.log.Info("tree is detached but for what stays here", "audit", true, "to", s.opt.To, "pid", s.opt.PID, "stays", m.Reasons)
	}
	s.event(e)
	e.Event = "done"
	s.event(e)
}

// moved takes the figures of a tree that is on its files.
func (s *Source) moved(m detachedMsg) {
	s.times.StopMS, s.times.SettleMS, s.times.Descriptors, s.times.Mappings = m.StopMS, m.SettleMS, m.Descriptors, m.Mappings
	s.times.FilesMoved, s.times.FileBytes, s.times.Removed, s.times.Kept = m.Files, m.Bytes, m.Removed, m.Kept
	s.times.Places, s.times.Aside = m.Places, m.Aside
}

// detached: nothing is served any more.
func (s *Source) detached(m detachedMsg) {
	if err := s.killTree(); err != nil {
		s.notice("the frozen tree could not be killed: %v", err)
	}
	s.note(Detached, "")
	_ = s.sess.send(wire.MsgEnd, nil) // the target does not wait for it
	s.moved(m)
	e := s.times
	e.Event = "detached"
	s.event(e)
	e.Event = "done"
	s.event(e)
	s.log.Info("tree is detached", "audit", true, "to", s.opt.To, "pid", s.opt.PID)
}

// tellCores tells what has not been told; each message holds all.
func (s *Source) tellCores(all []string) {
	for _, c := range all[min(s.cores, len(all)):] {
		s.notice("%s", c)
		s.cores++
	}
}

func (s *Source) exited(m exitedMsg) {
	if err := s.killTree(); err != nil {
		s.notice("the frozen tree could not be killed: %v", err)
	}
	s.tellCores(m.Cores)
	s.note(Ended, m.note())
	_ = s.sess.send(wire.MsgEnd, nil) // the target waits for it a moment only
	s.log.Info("tree has ended on the target", "audit", true, "to", s.opt.To, "pid", s.opt.PID, "status", m.Status)
	s.event(Event{Event: "exited", Status: &m.Status})
}
