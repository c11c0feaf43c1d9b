package migrate

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/restore"
)

const sweepEvery = time.Second

// sweep takes away what an agent that was killed has left: of migrations that had not been granted, whose capsules die with it, and of
// those whose trees have ended since. A tree that runs is not touched. It ends when nothing of earlier agents is left, or with ctx.
func (a *Agent) sweep(ctx context.Context) {
	for {
		all, err := List(a.opt.StateDir)
		if err != nil {
			a.opt.Log.Error("read records", "err", err)
		}
		left := 0
		for _, k := range all {
			if k.Last().Side != SideTarget || a.target(k.ID) != nil {
				continue
			}
			if st := sweepOne(k, a.free, a.opt.Log); !st.Final() || st == Detached {
				left++
			}
		}
		if left == 0 {
			return
		}
		select {
		case <-time.After(sweepEvery):
		case <-ctx.Done():
			return
		}
	}
}

// sweepOne does that for one migration that this agent does not run, and returns where it stands.
func sweepOne(k Known, free restore.Free, log *slog.Logger) State {
	last := k.Last()
	if last.Side != SideTarget || last.State.Final() && last.State != Detached {
		return last.State
	}
	lock, err := k.lock()
	if err != nil { // whoever has it, a switch of the tree perhaps, is not done
		log.Debug("a migration of an agent before is not swept", "id", k.ID, "state", last.State, "why", err)
		return last.State
	}
	defer lock.Close()
	if err := restore.Sweep(k.ID, free); err != nil { // something lives there still
		log.Debug("a migration of an agent before goes on without one", "id", k.ID, "state", last.State, "why", err)
		return last.State
	}
	if l, err := findCarrier(carrierWays{dir: k.Dir, drop: func([]uint32) {}}, log); err == nil {
		l.close()
	}
	for _, d := range images.FindDirs(imagesName(k.ID), k.Dir) {
		if err := os.RemoveAll(d); err != nil {
			log.Error("remove images", "id", k.ID, "err", err)
		}
	}
	end, why := Aborted, "the agent ended before the grant"
	switch {
	case last.State == Granted: // the agent died before it let go, or right after: the source must not kill the only tree that there may be
		end, why = LostTree, "the agent ended while it let the tree go, and nothing of it is here: whether it ran can't be told"
	case last.State.Handed():
		end, why = Ended, "the tree ended while there was no agent: its status is not known"
	}
	r, err := openRecord(k)
	if err == nil {
		err = r.Enter(end, why)
		r.Close()
	}
	if err != nil {
		log.Error("record that a migration is over", "id", k.ID, "err", err)
	}
	return end
}
