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
	if err := s.checkMode(&there); err != nil {
		return stage("preflight", err)
	}
	s.aheadRoom, s.aheadPacked = there.AheadRoom, there.Features[preflight.AheadPacked]
	s.searchHot(ctx, &there)
	s.eagerShared = !there.Features[preflight.LazyShared]
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

func taskMem(r *dump.Result) []memory.TaskMem {
	out := make([]memory.TaskMem, len(r.Tasks), len(r.Tasks)+len(r.Objects))
	for i, t := range r.Tasks {
		out[i].ID = t.ID
		for _, r := range t.Regions {
			if r.Empty {
				continue // a fault in no region is answered with zeros
			}
			out[i].Regions = append(out[i].Regions, memory.Region{Start: r.Start, End: r.End, WipeOnFork: r.WipeOnFork})
		}
		for _, s := range t.Shared {
			out[i].Shared = append(out[i].Shared, memory.SharedRange{Start: s.Start, End: s.End, Object: s.Object, Offset: s.Offset})
		}
	}
	for i, left := 0, maxHuge; i < len(r.Tasks) && left > 0; i++ {
		for _, h := range r.Tasks[i].Huge[:min(left, len(r.Tasks[i].Huge))] {
			out[i].Huge = append(out[i].Huge, [2]uint64{h.First, h.N})
			left--
		}
	}
	for _, o := range r.Objects {
		out = append(out, memory.TaskMem{ID: o.ID, Regions: []memory.Region{{End: o.Size}}})
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
