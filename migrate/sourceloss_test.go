package migrate

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// TestSourceIs: a target knows since when its source is away, says so, and when the tree is to be killed for it, if it is.
func TestSourceIs(t *testing.T) {
	for _, how := range []string{"", LossWait, LossKill} {
		rec, err := NewRecord(t.TempDir(), wire.NewID(), Entry{State: Prepare, Side: SideTarget})
		if err != nil {
			t.Fatal(err)
		}
		defer rec.Close()
		tgt := newTarget(nil, rec.ID, prepareMsg{OnSourceLoss: how, LossAfterMS: 1}, slog.Default())
		tgt.rec = rec
		for _, s := range []State{Frozen, Asked, Granted, Resumed} {
			if err := tgt.enter(s, ""); err != nil {
				t.Fatal(err)
			}
		}
		status := func() *Status {
			k, err := List(filepath.Dir(rec.Dir))
			if err != nil || len(k) != 1 {
				t.Fatalf("%v, %v", k, err)
			}
			return k[0].ReadStatus()
		}
		tgt.writeStatus(&progressMsg{Left: 4096})
		if s := status(); s == nil || s.LeftBytes != 4096 || !s.AwaySince.IsZero() {
			t.Errorf("status %+v", s)
		}
		tgt.sourceIs(true)
		if tgt.lossDue() != nil {
			t.Error("the tree is to be killed, and the source is here")
		}
		tgt.sourceIs(false)
		since := tgt.source.since
		tgt.sourceIs(false)
		if s := status(); s == nil || s.LeftBytes != 4096 || !s.AwaySince.Equal(since) || s.OnSourceLoss != how || s.State != Resumed {
			t.Errorf("status %+v, away since %v", s, since)
		}
		if due := tgt.lossDue(); (due != nil) != (how == LossKill) {
			t.Errorf("%q: to be killed: %v", how, due != nil)
		} else if due != nil {
			select {
			case <-due:
			case <-time.After(time.Minute):
				t.Error("it is never killed")
			}
		}
		tgt.sourceIs(true)
		if s := status(); !s.AwaySince.IsZero() || tgt.lossDue() != nil {
			t.Errorf("the source is back: %+v", s)
		}
	}
}

// TestTakeBack: a grant is void by TakeBack alone, and only until the tree has run; on the target only before it may have.
func TestTakeBack(t *testing.T) {
	for _, side := range []Side{SideSource, SideTarget} {
		for _, after := range []State{Frozen, Granted, LostTree, Resumed} {
			dir := t.TempDir()
			r, err := NewRecord(dir, wire.NewID(), Entry{State: Prepare, Side: side})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range []State{Frozen, Asked, Granted, after} {
				if r.Last().State == after {
					break
				}
				if err := r.Enter(s, ""); err != nil {
					t.Fatal(err)
				}
			}
			want := after == Granted || after == LostTree && side == SideSource
			if err := r.TakeBack("proven"); (err == nil) != want {
				t.Errorf("%s, %s: %v", side, after, err)
			}
			if k, err := find(dir, r.ID, side); err != nil || want != (k.Last().State == Aborted) {
				t.Errorf("%s, %s: record says %q, %v", side, after, k.Last().State, err)
			}
			r.Close()
		}
	}
}
