package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/restore/memory"
	"github.com/lazymig/lazymig/wire"
)

// Target is one migration on the agent. run drives it; everything else only passes things in.
type Target struct {
	a   *Agent
	id  wire.ID
	msg prepareMsg
	log *slog.Logger

	rec     *Record
	tmp     string // images, on a tmpfs if AgentOptions.ImagesOnDisk does not say otherwise
	sink    *imageSink
	ahead   *aheadSink
	hot     []memory.HotPages // to be pushed first
	fuse    *fuseDaemon
	capsule *restore.Capsule
	handler *restore.Handler
	stdio   *carrierLink // nil before the restore, and without streams

	sessions chan *session // control connections of a source that came back
	lanes    *laneNews
	stop     chan struct{} // the agent ends
	over     chan struct{} // run has ended
	once     sync.Once

	cur       *session           // the control connection, nil while the source is away; run's alone
	keep      bool               // the tree outlives this run
	missing   map[wire.Lane]bool // lanes that have been asked for, or are to be
	began     time.Time
	restoreMS float64
	fillMS    float64
	filled    *restore.Event // all memory was here before the grant
	source    sourceWatch
	progress  progressMsg
	cores     []string // dumped, and not whole
	told      bool     // the end is to be told: nothing of the tree is left, not even bytes of its streams
	resumed   *resumedMsg
	drained   *progressMsg
	exited    *exitedMsg

	detach     *detaching     // nil before drained
	choices    choices        // its goroutine's
	connection fuseConnection // of the tree's files, as it was before the switch; its goroutine's, too
	detached   *detachedMsg
	stays      *staysMsg

	mu    sync.Mutex // guards what giveLane, reconnect and State look at
	state State
}

func newTarget(a *Agent, id wire.ID, m prepareMsg, log *slog.Logger) *Target {
	return &Target{
		a: a, id: id, msg: m, log: log, began: time.Now(),
		sessions: make(chan *session), lanes: newLaneNews(), stop: make(chan struct{}), over: make(chan struct{}),
		missing: map[wire.Lane]bool{},
	}
}

// State is where it stands.
func (t *Target) State() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state
}

func (t *Target) enter(s State, note string) error {
	if err := t.rec.Enter(s, note); err != nil {
		return err
	}
	t.mu.Lock()
	t.state = s
	t.mu.Unlock()
	return nil
}

func (t *Target) agentEnds() { t.once.Do(func() { close(t.stop) }) }

// ask wants lanes dialed; asking twice is harmless.
func (t *Target) ask(lanes ...wire.Lane) { t.lanes.say(true, lanes...) }

// giveLane passes a connection to the process that serves the lane. It says so before: who gets it may lose it at once, and that must be the last word.
func (t *Target) giveLane(l wire.Lane, f *os.File, clear bool) error {
	t.mu.Lock()
	fuse, handler := t.fuse, t.handler
	t.mu.Unlock()
	switch {
	case l == wire.LaneFiles && fuse != nil:
		t.lanes.say(false, l)
		return fuse.giveLane(f, clear)
	case (l == wire.LaneUrgent || l.Bulk()) && handler != nil:
		t.lanes.say(false, l)
		return handler.GiveLane(l, f, clear)
	}
	f.Close()
	return fmt.Errorf("%v is %w", l, errNoLane)
}

var errNoLane = errors.New("not expected now")

// reconnect hands in a new control connection and waits until it is no longer used.
func (t *Target) reconnect(c *wire.Conn, m stateMsg) {
	t.mu.Lock()
	r := t.stdio.streams()
	t.mu.Unlock()
	s := newSession(c, r)
	s.peer = m
	select {
	case t.sessions <- s:
		<-s.done
	case <-t.stop:
		s.close()
	case <-t.over:
		s.close()
	}
}

// run is the target's state machine: everything up to the end of the tree. c is the first control connection.
func (t *Target) run(ctx context.Context, c *wire.Conn) error {
	rec, err := NewRecord(t.a.opt.StateDir, t.id, Entry{State: Prepare, Side: SideTarget, Peer: t.msg.Host, Note: t.msg.Comm})
	if err != nil {
		t.fail(c, err)
		return err
	}
	t.rec, t.state = rec, Prepare
	defer rec.Close()
	defer close(t.over)
	defer func() { _ = t.cleanup() }() // told there
	if err := rec.lock(); err != nil {
		t.fail(c, err)
		return err
	}
	s := newSession(c, nil)
	s.beat.Reset(watchedPing) // until the grant
	defer t.stopStdio()
	defer func() {
		s.close()
		t.adopt(nil)
	}()
	if err := t.untilGranted(ctx, s); err != nil {
		t.fail(c, err)
		return t.giveUp(err)
	}
	return t.whileRunning()
}

// giveUp is before the tree runs here: nothing is left but the record.
func (t *Target) giveUp(err error) error {
	if t.keep {
		return err
	}
	if cerr := t.cleanUp(); cerr != nil { // what is held may live: only an agent that finds it dead may say so
		return errors.Join(err, cerr)
	}
	switch {
	case errors.Is(err, restore.ErrNeverRuns) && t.State() == Granted:
		return errors.Join(err, t.voidGrant(err))
	case t.State().Handed():
		return errors.Join(err, t.enter(LostTree, err.Error()))
	}
	return errors.Join(err, t.enter(Aborted, err.Error())) // which is the proof that it never ran, and never will
}

// voidGrant records that a tree which was granted has never run here, nor will: what held it died before it was let go, and has been killed.
func (t *Target) voidGrant(why error) error {
	if err := t.rec.TakeBack(why.Error()); err != nil {
		return err
	}
	t.mu.Lock()
	t.state = Aborted
	t.mu.Unlock()
	return nil
}

// fail tells the source.
func (t *Target) fail(c *wire.Conn, err error) {
	t.log.Error("migration failed before the grant", "err", err)
	_ = c.Send(wire.MsgError, 0, 0, wire.MarshalError(err)) // if it is lost the source sees the connection end
}

// untilGranted is prepare … granted.
func (t *Target) untilGranted(ctx context.Context, s *session) error {
	if err := t.prepare(ctx, s); err != nil {
		return err
	}
	park.At(t.log, "prepare")
	conflicts, err := t.conflicts(ctx)
	if err != nil {
		return fmt.Errorf("compare what is to be put in its place: %w", err)
	}
	if err := s.send(wire.MsgPrepared, conflictsMsg{conflicts}); err != nil {
		return fmt.Errorf("say prepared: %w", err)
	}
	if len(conflicts) > 0 {
		return fmt.Errorf("%d paths can't be put in their places", len(conflicts))
	}
	for {
		select {
		case f, ok := <-s.frames:
			if !ok {
				return fmt.Errorf("source is lost before the grant: %w", s.err)
			}
			done, err := t.beforeGrant(ctx, s, f)
			if done || err != nil {
				return err
			}
		case <-t.lanes.some:
			t.laneSaid(s)
		case e, ok := <-t.capsule.Events():
			if !ok || e.Kind == restore.EventExited {
				return errors.New("the capsule has ended before the grant")
			}
			t.early(&e)
		case <-t.stop:
			return errors.New("the agent ends")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// beforeGrant handles one message; true: the tree runs here.
func (t *Target) beforeGrant(ctx context.Context, s *session, f frame) (bool, error) {
	switch f.h.Type {
	case wire.MsgClock:
		return false, answerClock(s.c, f.h, f.p)
	case wire.MsgImages:
		if t.State() == Prepare {
			if err := t.enter(Frozen, ""); err != nil {
				return false, err
			}
			park.At(t.log, "images")
		}
		return false, t.sink.piece(f.p)
	case wire.MsgHot:
		list, err := takeHot(t.hot, f.p)
		t.hot = list
		return false, err
	case wire.MsgAhead:
		return false, t.ahead.pages(f.h.Flags, f.p)
	case wire.MsgRestore:
		var m restoreMsg
		if err := decode(f.p, &m); err != nil {
			return false, err
		}
		return t.restore(ctx, s, m)
	case wire.MsgAbort:
		return false, errors.New("the source gave up")
	case wire.MsgError:
		return false, wire.ParseError(f.p)
	}
	return false, fmt.Errorf("message %d of the source before the grant", f.h.Type)
}

// restore brings the tree up to its first instruction, asks, and lets go when granted.
func (t *Target) restore(ctx context.Context, s *session, m restoreMsg) (bool, error) {
	began := time.Now()
	if err := images.Validate(t.tmp); err != nil {
		return false, fmt.Errorf("images of the source: %w", err)
	}
	early, err := decodeEarly(t.sink.early)
	if err != nil {
		return false, err
	}
	opt := restore.RestoreOptions{Tasks: m.Tasks, TCPClose: m.TCPClose, ShellJob: m.ShellJob, Datagrams: len(t.msg.Datagrams) > 0, Fixups: fixups(m.Fixups), Databases: m.Databases, Locks: m.Locks, Parts: t.msg.Parts}
	if err := t.openStdio(ctx, m.Stdio, s); err != nil {
		return false, err
	}
	if t.stdio != nil {
		opt.Inherit = t.stdio.inherits
	}
	for _, p := range early {
		opt.Early = append(opt.Early, restore.EarlyPage{Task: p.Task, Addr: p.Addr, Data: p.Data})
	}
	park.At(t.log, "restore")
	if err := t.beforeGrantAside(ctx, s, func(ctx context.Context) error {
		if err := t.fuse.awaitClosed(ctx, t.fuse.frozen); err != nil {
			return err
		}
		return t.capsule.Restore(ctx, opt)
	}); err != nil {
		return false, fmt.Errorf("restore tree: %w", err)
	}
	t.stdio.restored()
	t.restoreMS = float64(time.Since(began).Microseconds()) / 1000
	if err := t.beforeGrantAside(ctx, s, func(ctx context.Context) error {
		if err := t.takeAhead(ctx, &m); err != nil {
			return err
		}
		return t.fill(ctx, s, m.Mode)
	}); err != nil {
		return false, err
	}
	if err := t.writeGoing(); err != nil {
		return false, err
	}
	if err := t.enter(Asked, ""); err != nil {
		return false, err
	}
	if err := t.fuse.outlive(ctx); err != nil {
		return false, err
	}
	if err := t.capsule.Outlive(ctx); err != nil {
		return false, err
	}
	t.stdio.stay()
	park.At(t.log, "asked")
	if err := s.send(wire.MsgHeld, heldMsg{RestoreMS: t.restoreMS, FillMS: t.fillMS}); err != nil {
		t.log.Warn("ask for the grant", "err", err) // asked again on the next connection
	}
	granted, err := t.awaitGrant(s)
	if err != nil || !granted {
		return false, err
	}
	return true, t.letGo(ctx)
}

// letGo is after the grant: from here the tree runs only here, and nothing may kill it.
func (t *Target) letGo(ctx context.Context) error {
	first := t.State() != Granted // no agent before this one has begun to let it go
	for t.State() != Granted {
		err := t.enter(Granted, "")
		if err == nil {
			break
		}
		// The source has given the tree away: it must not be lost because a disk is full here. It waits until there is room.
		t.log.Error("the grant can't be recorded; the tree is held until it can", "err", err)
		select {
		case <-time.After(time.Second):
		case <-t.stop:
			return err
		}
	}
	park.At(t.log, "letgo")
	return t.afterGrantAside(func() error {
		if err := t.capsule.Finish(ctx); err != nil { // while changes are still kept here: criu removes what it made
			if first && errors.Is(err, restore.ErrNotTold) {
				return errors.Join(restore.ErrNeverRuns, err)
			}
			return err
		}
		if err := t.fuse.granted(ctx); err != nil {
			return err
		}
		r, err := t.capsule.Release(ctx)
		if err != nil {
			return fmt.Errorf("let the tree go: %w", err)
		}
		t.resumed = &resumedMsg{At: r.At.UnixNano(), PID: r.PID}
		return nil
	})
}
