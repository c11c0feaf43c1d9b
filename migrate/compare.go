package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lazymig/lazymig/dump"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/restore/memory"
)

const checkTime = 20 * time.Second

// compare asks the target what it can do and refuses what it can't.
func (s *Source) compare(ctx context.Context) error {
	there, err := askFacts(ctx, s.sess)
	if err != nil {
		return err
	}
	here := preflight.LocalFacts(ctx, preflight.HostOptions{CRIUPath: s.opt.CRIUPath, StateDir: s.opt.StateDir})
	var errs []error
	for _, f := range preflight.Compare(&s.rep.Tree, here, there) {
		switch f.Level {
		case preflight.Warn:
			s.notice("%s: %s %s", f.What, f.Why, f.Do)
		case preflight.Refuse:
			errs = append(errs, fmt.Errorf("%s: %s; %s", f.What, f.Why, f.Do))
		}
	}
	if len(errs) > 0 {
		return stage("preflight", errors.Join(errs...))
	}
	return nil
}

func taskMem(tasks []dump.Task) []memory.TaskMem {
	out := make([]memory.TaskMem, len(tasks))
	for i, t := range tasks {
		out[i].ID = t.ID
		for _, r := range t.Regions {
			if r.Empty {
				continue // a fault in no region is answered with zeros
			}
			out[i].Regions = append(out[i].Regions, memory.Region{Start: r.Start, End: r.End, WipeOnFork: r.WipeOnFork})
		}
	}
	return out
}

func fixups(in []preflight.Fixup) []restore.Fixup {
	out := make([]restore.Fixup, len(in))
	for i, f := range in {
		out[i] = restore.Fixup{TID: int32(f.TID), Affinity: f.Affinity, TimerSlackNS: f.TimerSlackNS, IOPrio: f.IOPrio, KSM: f.KSM}
	}
	return out
}
