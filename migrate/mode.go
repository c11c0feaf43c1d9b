package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/wire"
)

// How memory gets to the target (SourceOptions.Mode).
const (
	ModeAuto   = "auto"   // one of the others, as what is measured says
	ModePost   = "post"   // after the resume: what a thread waits for first, then the rest
	ModeHybrid = "hybrid" // ahead, while the tree runs at the source, and what was written since after the resume
	ModePre    = "pre"    // ahead, again and again, until the rest fits SourceOptions.MaxDowntime; that before the resume
	ModeStop   = "stop"   // before the resume, all of it: nothing is lazy, and the pause is as long as memory is large
)

// How it is found out which pages that were copied ahead are still good (SourceOptions.Track).
const (
	TrackAuto = "auto" // by write protection where the kernel can, else by hashes
	TrackWP   = "wp"   // the kernel notes writes; huge pages are split by them
	TrackHash = "hash" // pages are hashed when they are sent and again when the tree is frozen; nothing is done to the process
)

// CheckTrack says whether t is one.
func CheckTrack(t string) bool { return t == TrackAuto || t == TrackWP || t == TrackHash }

// CheckMode says whether m is one.
func CheckMode(m string) bool {
	return m == ModeAuto || m == ModePost || m == ModeHybrid || m == ModePre || m == ModeStop
}

// fills says whether the target takes all from the source before it asks for the grant.
func fills(mode string) bool { return mode == ModeStop || mode == ModePre }

// errOldAgent says that the agent is of a release that knows no modes.
var errOldAgent = errors.New("the agent is of a release before --mode: update it, or migrate with --mode post")

// checkMode refuses a mode that the target does not know: it would resume the tree without its memory.
func (s *Source) checkMode(there *preflight.Facts) error {
	switch {
	case s.mode == "" || s.mode == ModePost || there.Features[preflight.Modes]:
		return nil
	case s.mode == ModeAuto:
		return s.chosen(ModePost, "the agent knows no other")
	}
	return errOldAgent
}

// stallTime is how long nothing may come while the tree stands still and is filled.
const stallTime = restoreTime

// fill is between restore and question in the modes where nothing may be missing when the tree runs: the same push as after a resume. The source
// is told how far it is; by that it also sees that it goes on.
func (t *Target) fill(ctx context.Context, s *session, mode string) error {
	if !fills(mode) {
		return nil
	}
	began := time.Now()
	// What was copied ahead is here, and is placed after the resume: its faults need nobody else.
	if err := t.capsule.StartDrain(t.ahead.kept()); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-t.capsule.Events():
			switch {
			case !ok || e.Kind == restore.EventExited:
				return errors.New("the capsule has ended before the grant")
			case e.Kind == restore.EventProblem:
				t.log.Error("capsule", "problem", e.Text)
			case e.Kind == restore.EventProgress:
				if err := s.send(wire.MsgProgress, t.progressOf(&e)); err != nil {
					t.log.Warn("tell source", "err", err) // it is seen to be lost
				}
			case e.Kind == restore.EventDrained, e.Kind == restore.EventFilled:
				t.early(&e)
				t.fillMS = ms(time.Since(began))
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("fill memory: %w", context.Cause(ctx))
		}
	}
}

// early keeps an event that belongs to a tree that runs, until it does.
func (t *Target) early(e *restore.Event) {
	if e.Kind == restore.EventDrained {
		t.filled = e
	}
}

// takeAhead gives the guardian what was copied ahead and is good, as the source says while the tree is restored.
func (t *Target) takeAhead(ctx context.Context, m *restoreMsg) error {
	if !m.Ahead {
		t.ahead.close()
		return nil
	}
	select {
	case <-t.ahead.whole:
	case <-ctx.Done():
		return fmt.Errorf("wait for what is good of the pages copied ahead: %w", context.Cause(ctx))
	}
	if !t.ahead.kept() {
		return nil
	}
	err := t.capsule.Ahead(ctx, t.ahead.f, t.ahead.good)
	t.ahead.close()
	return err
}

// progressOf is what the source is told.
func (t *Target) progressOf(e *restore.Event) *progressMsg {
	return &progressMsg{
		Left: e.Stats.Left * pageSize, Copied: e.Stats.BytesCopied, Faults: e.Stats.Faults,
		FaultP50US: float64(e.Stats.FaultP50us), FaultP99US: float64(e.Stats.FaultP99us), StallMS: ms(e.Stats.Stall),
		Hot: e.Stats.HotPages * pageSize, Prefetched: e.Stats.Prefetched, PrefetchHits: e.Stats.PrefetchHits, Cores: t.cores,
	}
}

// awaitHeld waits until the target holds the restored tree. As long as memory comes, in the modes where it comes before, it waits on.
func (s *Source) awaitHeld(ctx context.Context, held *heldMsg) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(restoreTime, func() { cancel(fmt.Errorf("the target has not restored the tree within %v", restoreTime)) })
	defer late.Stop()
	left := ^uint64(0)
	s.sess.progress = func(m progressMsg) {
		if m.Left < left {
			left = m.Left
			late.Reset(stallTime)
		}
		s.event(Event{Event: "progress", LeftBytes: m.Left, BytesSent: m.Copied})
	}
	defer func() { s.sess.progress = nil }()
	return s.sess.await(ctx, wire.MsgHeld, held, forEver, s.dialed)
}

const forEver = 100 * 365 * 24 * time.Hour
