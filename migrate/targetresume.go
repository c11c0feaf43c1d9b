package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lazymig/lazymig/lazyfs/store"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/wire"
)

// pickUp takes up what an agent before this one has left: trees that are held, since the source may have granted them, and trees that run. The rest is
// for sweep. Nobody can connect yet.
func (a *Agent) pickUp(ctx context.Context) {
	all, err := List(a.opt.StateDir)
	if err != nil {
		a.opt.Log.Error("read records", "err", err)
	}
	for _, k := range all {
		if !k.leftBehind() || !errors.Is(a.pickUpOne(ctx, k), ErrServed) {
			continue
		}
		a.opt.Log.Warn("migration waits for a process that has it: a switch of the tree, whose agent is gone, or another agent", "id", k.ID)
		a.wg.Go(func() { a.pickUpLater(ctx, k.ID) })
	}
}

// leftBehind says whether there may be a tree here that an agent must care for.
func (k Known) leftBehind() bool {
	last := k.Last()
	return last.Side == SideTarget && last.Boot == bootID() && (last.State == Asked || last.State == Granted || last.State == Resumed || last.State == Drained)
}

// pickUpOne takes one migration up, and drives it in a goroutine.
func (a *Agent) pickUpOne(ctx context.Context, k Known) error {
	state := k.Last().State
	log := a.opt.Log.With("id", k.ID)
	t, err := a.found(ctx, k)
	switch {
	case errors.Is(err, errDetached):
		log.Warn("migration is over", "audit", true, "state", Detached, "why", err)
		return err
	case errors.Is(err, ErrServed):
		return err
	case err != nil:
		log.Warn("migration is not taken up", "state", state, "err", err)
		return err
	}
	log.Warn("migration is taken up", "audit", true, "tree", t.msg.Comm, "from", t.msg.Host, "state", state)
	a.wg.Go(func() {
		defer a.drop(t)
		end := t.goOn(ctx)
		log.Info("migration ends", "audit", true, "state", t.State(), "err", end)
	})
	return nil
}

const pickUpAgain = 100 * time.Millisecond

// pickUpLater takes a migration up when whoever has it lets go of it. Its source is told meanwhile what the record says, and comes again.
func (a *Agent) pickUpLater(ctx context.Context, id wire.ID) {
	for {
		select {
		case <-time.After(pickUpAgain):
		case <-ctx.Done():
			return
		}
		k, err := find(a.opt.StateDir, id, SideTarget)
		if err != nil {
			a.opt.Log.Error("read record", "id", id, "err", err)
			return
		}
		if !k.leftBehind() || !errors.Is(a.pickUpOne(ctx, k), ErrServed) {
			return
		}
	}
}

// found makes a Target of a record, if its guardian lives.
func (a *Agent) found(ctx context.Context, k Known) (*Target, error) {
	var g targetGoing
	if err := readState(filepath.Join(k.Dir, "going"), &g); err != nil {
		return nil, err
	}
	t := newTarget(a, k.ID, g.Msg, a.opt.Log.With("id", k.ID))
	t.began = k.Entries[0].Time
	t.tmp, t.restoreMS, t.state = g.Images, g.RestoreMS, k.Last().State
	rec, err := openRecord(k)
	if err != nil {
		return nil, err
	}
	// What was read may never have got to the disk.
	if err := errors.Join(rec.lockWithin(pickUpTime), rec.f.Sync()); err != nil {
		rec.Close()
		return nil, err
	}
	t.rec = rec
	if err := t.takeUp(ctx); err != nil {
		defer rec.Close()
		if !errors.Is(err, restore.ErrNoGuardian) {
			return nil, err
		}
		if m := readSwitched(k.Dir, t.log); m != nil {
			return nil, t.detachedBefore(m)
		}
		return nil, errors.Join(err, t.takeBack()) // the tree has died in the middle of a switch
	}
	a.mu.Lock()
	a.targets[t.id] = t
	a.mu.Unlock()
	return t, nil
}

// pickUpTime is how long an agent that starts waits for one migration: the others are not served meanwhile.
const pickUpTime = time.Second

// errDetached says that there is nothing to be taken up.
var errDetached = errors.New("the agent before this one had detached the tree; that is recorded now")

// detachedBefore records what an agent has died over: the tree is on its files, and its guardian is no more than an init. The source hears of it when it
// asks.
func (t *Target) detachedBefore(m *detachedMsg) error {
	if c, err := findCarrier(carrierWays{dir: t.rec.Dir, drop: func([]uint32) {}}, t.log); err == nil { // it has nothing to carry any more
		c.close()
	}
	kept, err := t.finishPlaces()
	m.Aside = fewReasons(append(m.Aside, kept...))
	if err := errors.Join(err, store.Finish(t.rec.Dir), os.RemoveAll(t.tmp)); err != nil {
		t.log.Error("take away what helpers of a detached tree have left", "err", err)
	}
	if err := t.enter(Detached, filesAt(m)); err != nil {
		return err // and the outcome of the switch stays
	}
	forgetSwitched(t.rec.Dir, t.log)
	return errDetached
}

const adoptTime = 10 * time.Second

// takeUp takes over capsule and FUSE daemon, and starts a handler.
func (t *Target) takeUp(ctx context.Context) (err error) {
	if t.fuse, err = attachFuseDaemon(t.a.free.Start, t.rec.Dir, func() { t.ask(wire.LaneFiles) }, t.log); err != nil {
		t.fuse = nil
		if t.state == Asked || t.state == Granted {
			return err
		}
		if readSwitched(t.rec.Dir, t.log) == nil { // else they are its own
			t.log.Error("the tree's files are out of reach for this agent", "err", err)
		}
	}
	defer func() {
		if err != nil && t.fuse != nil {
			t.fuse.leave()
		}
	}()
	// Nobody can connect before this has come to an end.
	soon, cancel := context.WithTimeoutCause(ctx, adoptTime, errors.New("the guardian does not answer"))
	defer cancel()
	c, f, err := restore.Adopt(soon, restore.Options{ID: t.id, Free: t.a.free, Dir: t.rec.Dir, Log: t.log})
	if err != nil {
		return err
	}
	t.capsule = c
	if f.Resumed != nil {
		t.resumed = &resumedMsg{At: f.Resumed.At.UnixNano(), PID: f.Resumed.PID}
	}
	if f.Exited != nil {
		t.event(*f.Exited)
	}
	if f.Drained != nil {
		t.event(*f.Drained)
	}
	if t.stdio, err = findCarrier(t.carrierWays(), t.log); err != nil {
		t.stdio = nil // none was needed, or it is gone
		t.log.Debug("standard streams", "err", err)
	}
	h, err := c.StartHandler(ctx, t.handlerOptions())
	if err != nil {
		t.stdio.leave()
		c.Abandon()
		return fmt.Errorf("start handler: %w", err)
	}
	t.handler = h
	return nil
}

// goOn is run for a migration that another agent has begun.
func (t *Target) goOn(ctx context.Context) error {
	defer t.rec.Close()
	defer close(t.over)
	defer func() { _ = t.cleanup() }() // told there
	defer t.stopStdio()
	defer func() { t.adopt(nil) }()
	switch t.State() {
	case Asked:
		granted, err := t.awaitGrant(nil)
		if err != nil || !granted {
			return t.giveUp(err)
		}
		fallthrough
	case Granted:
		if err := t.letGo(ctx); err != nil {
			return t.giveUp(err)
		}
	}
	return t.whileRunning()
}
