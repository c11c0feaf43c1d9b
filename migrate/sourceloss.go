package migrate

import (
	"fmt"
	"path/filepath"
	"time"
)

// What becomes of a tree that runs on the target when its source is away for good is chosen before: SourceOptions.OnSourceLoss.
const (
	LossWait = "wait" // what it has not got is waited for
	LossKill = "kill" // it is killed when the source has been away for SourceOptions.LossAfter
)

// CheckLoss says whether s is one of them.
func CheckLoss(s string) bool { return s == LossWait || s == LossKill }

const statusEvery = time.Second

// sourceWatch is what the target knows of its source's absence; run's alone.
type sourceWatch struct {
	since time.Time // zero: it is here
	timer *time.Timer
	lost  bool // the tree is killed for it
	told  time.Time
}

// sourceIs is told when the source goes away or comes back.
func (t *Target) sourceIs(here bool) {
	w := &t.source
	if here == w.since.IsZero() {
		return
	}
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	w.since = time.Time{}
	if !here {
		w.since = time.Now()
		if t.msg.OnSourceLoss == LossKill {
			w.timer = time.NewTimer(time.Duration(t.msg.LossAfterMS) * time.Millisecond)
		}
	}
	t.writeStatus(nil)
}

// lossDue is when the tree is to be killed; nil: not.
func (t *Target) lossDue() <-chan time.Time {
	if t.source.timer == nil {
		return nil
	}
	return t.source.timer.C
}

// sourceLost kills the tree. Its end is noticed as any other.
func (t *Target) sourceLost() {
	t.source.timer = nil
	t.source.lost = true
	t.log.Error("the source is lost: the tree is killed, as was asked for", "audit", true, "since", t.source.since)
	if err := t.capsule.Kill(); err != nil {
		t.log.Error("kill tree", "err", err)
	}
}

// endNote is for the record.
func (t *Target) endNote() string {
	if t.source.lost {
		return fmt.Sprintf("killed: the source was away since %s", t.source.since.Format(time.RFC3339))
	}
	note := t.exited.note()
	if t.stays != nil && t.stays.Detached != nil {
		note += "; " + filesAt(t.stays.Detached)
	}
	return note
}

const statusName = "status"

// writeStatus writes what `lazymig status` shows on this host; m is what the capsule says of its memory, nil: as before.
func (t *Target) writeStatus(m *progressMsg) {
	if m != nil {
		t.progress = *m
		if time.Since(t.source.told) < statusEvery {
			return
		}
	}
	t.source.told = time.Now()
	s := Status{State: t.State(), LeftBytes: t.progress.Left, Faults: t.progress.Faults, AwaySince: t.source.since, OnSourceLoss: t.msg.OnSourceLoss, Streams: t.carries()}
	if t.stays != nil && t.stays.Detached != nil {
		s.Residual = t.stays.Reasons
	}
	if err := writeState(filepath.Join(t.rec.Dir, statusName), s); err != nil {
		t.log.Debug("write status", "err", err) // a full disk: the tree goes on
	}
}

// ReadStatus is what a tree that runs here still needs from its source, and whether that is there; nil: it does not run here.
func (k Known) ReadStatus() *Status {
	var s Status
	if st := k.Last().State; k.Last().Side != SideTarget || st != Resumed && st != Drained || readState(filepath.Join(k.Dir, statusName), &s) != nil {
		return nil
	}
	s.State = k.Last().State
	return &s
}
