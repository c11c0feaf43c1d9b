package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/internal/park"
)

// Freeze freezes the tree and makes the images. On an error all has been undone as by Abort: the tree runs.
func (d *Dump) Freeze(ctx context.Context) (*Result, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != statePrepared {
		return nil, fmt.Errorf("freeze process %d: dump is %v: %w", d.o.PID, d.state, ErrState)
	}
	r, err := d.freeze(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("freeze process %d: %w", d.o.PID, err), d.abort())
	}
	d.result, d.state = r, stateFrozen
	return r, nil
}

// stop freezes the tree's cgroup. A thread that is in the kernel at the wrong moment, or a busy machine, makes that take
// too long at times: the tree runs on for a while then, before the next try.
func (d *Dump) stop(ctx context.Context, r *Result) error {
	for try := 1; ; try++ {
		r.FrozenAt = time.Now()
		err := d.h.freeze(ctx, d.undo.Cgroup, freezeLimit)
		if err == nil || !errors.Is(err, errTimeout) || try == freezeTries {
			return err
		}
		d.log.Warn("freeze again", "err", err, "try", try)
		if err := d.h.thaw(d.undo.Cgroup); err != nil {
			return err
		}
		select {
		case <-time.After(freezePause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (d *Dump) freeze(ctx context.Context) (*Result, error) {
	r := &Result{ImagesDir: d.images, FrozenAt: time.Now(), Cgroup: d.undo.Cgroup}
	var stages []any // name, milliseconds since the freeze
	stage := func(name string) {
		stages = append(stages, name, float64(time.Since(r.FrozenAt).Microseconds())/1000)
	}
	defer func() { d.log.Debug("freeze", stages...) }()
	if err := d.stop(ctx, r); err != nil {
		return nil, err
	}
	stage("frozen")
	if err := d.settle(); err != nil {
		return nil, err
	}
	if err := d.ns.recheck(); err != nil {
		return nil, err
	}
	if err := d.refresh(r); err != nil {
		return nil, err
	}
	if err := d.findObjects(r); err != nil {
		return nil, err
	}
	stage("compared")
	if d.o.Unhidden {
		r.Unhidden = "asked for"
	} else if err := d.bindAll(); err != nil {
		r.Unhidden = err.Error()
		d.log.Warn("dump everything: nothing can be hidden", "err", err)
		if err := d.unbindAll(); err != nil {
			return nil, err
		}
	}
	if d.o.hooks.beforeAck != nil {
		d.o.hooks.beforeAck(d.worker.PID())
	}
	stage("bound")
	park.At(d.log, "dump")
	close(d.release)
	select {
	case <-d.complete:
	case <-d.dumped:
		return nil, d.dumpErr
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	stage("dumped")
	// CRIU lets the tasks go and ends meanwhile.
	if err := d.unbindAll(); err != nil {
		return nil, err
	}
	if err := d.finishImages(r); err != nil {
		return nil, err
	}
	if err := d.closeImages(); err != nil {
		return nil, err
	}
	stage("images")
	<-d.dumped
	if d.dumpErr != nil {
		return nil, d.dumpErr
	}
	if err := d.worker.Wait(); err != nil {
		return nil, err
	}
	stage("ended")
	if err := d.restoreRemaps(); err != nil {
		return nil, err
	}
	if err := d.h.await(ctx, d.undo.Cgroup, "frozen", true, refreezeLimit); err != nil {
		return nil, err
	}
	if err := d.sameTasks(r); err != nil {
		return nil, err
	}
	for i := range r.Tasks {
		early, err := readEarly(d.images, &r.Tasks[i])
		if err != nil {
			return nil, err
		}
		r.Early = append(r.Early, early...)
	}
	stage("complete")
	r.DumpMS = float64(time.Since(r.FrozenAt)) / float64(time.Millisecond)
	d.recheck(r.Tasks)
	return r, nil
}

// settle looks at the frozen tree: every live process of it must be in the cgroup, and what has left the tree (a daemon
// that detached itself) goes back to where it came from.
func (d *Dump) settle() error {
	var err error
	if d.procs, err = enumerate(d.o.PID); err != nil {
		return err
	}
	inside, err := d.h.procs(d.undo.Cgroup)
	if err != nil {
		return err
	}
	fresh := false
	for _, p := range d.procs {
		if p.zombie {
			continue
		}
		i := slices.Index(inside, p.pid)
		if i < 0 {
			return fmt.Errorf("process %d is not in the cgroup %s: %w", p.pid, d.undo.Cgroup, ErrNotStopped)
		}
		inside = slices.Delete(inside, i, i+1)
		if !slices.ContainsFunc(d.undo.Moved, func(m moved) bool { return m.PID == p.pid && m.Start == p.start }) {
			d.undo.Moved = append(d.undo.Moved, moved{PID: p.pid, Start: p.start, Old: d.undo.Home})
			d.undo.Binds = append(d.undo.Binds, smapsPath(p.vpid))
			fresh = true
		}
	}
	if fresh {
		if err := d.keeper.tell(keeperMessage{State: &d.undo}); err != nil {
			return err
		}
	}
	for _, pid := range inside {
		if slices.ContainsFunc(d.procs, func(p process) bool { return p.pid == pid }) {
			return fmt.Errorf("the first thread of process %d has ended, others run: %w", pid, unix.EOPNOTSUPP)
		}
		if err := d.h.move(pid, d.undo.home(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("let go of process, which has left the tree: %w", err)
		}
	}
	return nil
}

// refresh takes the snapshot of each process again whose mappings are not those of the snapshot any more.
func (d *Dump) refresh(r *Result) error {
	snaps := make(map[int]*snapshot, len(d.procs))
	for _, p := range d.procs {
		if p.zombie {
			continue
		}
		s := d.snaps[p.pid]
		if s != nil {
			ok, err := s.current(d.flags, p.pid)
			if err != nil {
				return err
			}
			if ok {
				snaps[p.pid] = s
				continue
			}
		}
		s, err := takeSnapshot(d.flags, p.pid)
		if err != nil {
			return err
		}
		s.frozen = true
		snaps[p.pid] = s
		r.Again++
	}
	d.snaps = snaps
	return nil
}

// bindAll shows CRIU smaps without what is hidden.
func (d *Dump) bindAll() error {
	for _, p := range d.procs {
		s := d.snaps[p.pid]
		if s == nil {
			continue
		}
		path := filepath.Join(d.o.WorkDir, "smaps", fmt.Sprint(p.vpid))
		if err := os.WriteFile(path, s.filtered(d.objects), 0o600); err != nil {
			return fmt.Errorf("write smaps: %w", err)
		}
		f, err := os.OpenFile(path, unix.O_PATH, 0)
		if err != nil {
			return fmt.Errorf("write smaps: %w", err)
		}
		err = bindSmaps(d.thread, f, smapsPath(p.vpid))
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Dump) unbindAll() error {
	return d.thread.do(func() error {
		var errs []error
		for _, p := range d.undo.Binds {
			errs = append(errs, unbindSmaps(p))
		}
		return errors.Join(errs...)
	})
}

// finishImages puts the hidden mappings into the images, repairs timers, and derives the regions from what is in them then.
func (d *Dump) finishImages(r *Result) error {
	if err := images.ArmTimers(d.images); err != nil {
		return err
	}
	if r.Unhidden != "" {
		d.objects = nil
	} else if err := d.addObjects(r, d.procs[0].vpid); err != nil {
		return err
	}
	for _, p := range d.procs {
		if p.zombie {
			r.Zombies = append(r.Zombies, p.vpid)
			continue
		}
		s := d.snaps[p.pid]
		if r.Unhidden == "" {
			if err := images.AddVMAs(d.images, p.vpid, s.hidden(d.objects)); err != nil {
				return err
			}
		}
		t := Task{ID: p.vpid, PID: p.pid, StartTime: p.start, TIDs: p.tids, Huge: s.blocks}
		if r.Unhidden == "" {
			t.Shared = s.shared(d.objects)
		}
		vmas, err := images.VMAs(d.images, p.vpid)
		if err != nil {
			return err
		}
		i, had := 0, map[uint64]bool{}
		for _, v := range vmas {
			if !v.Lazy() {
				continue
			}
			for i < len(s.mappings) && s.mappings[i].start < v.Start {
				i++
			}
			reg := Region{Start: v.Start, End: v.End, Prot: v.Prot, WipeOnFork: v.Madv&(1<<madvFlags["wf"]) != 0}
			if i < len(s.mappings) && s.mappings[i].start == v.Start {
				had[v.Start] = s.mappings[i].rss+s.mappings[i].swap > 0
				t.Bytes += s.mappings[i].rss + s.mappings[i].swap
			}
			t.Regions = append(t.Regions, reg)
		}
		if err := markEmpty(&t, had); err != nil {
			return err
		}
		r.MemoryBytes += t.Bytes
		r.Threads += len(t.TIDs)
		r.Tasks = append(r.Tasks, t)
	}
	var err error
	r.TCPClosed, err = images.Established(d.images)
	return err
}

// sameTasks holds the images against the frozen cgroup: the same processes with the same threads, nothing else.
func (d *Dump) sameTasks(r *Result) error {
	dumped, err := images.Tasks(d.images)
	if err != nil {
		return err
	}
	inside, err := d.h.procs(d.undo.Cgroup)
	if err != nil {
		return err
	}
	live := 0
	for _, t := range dumped {
		if t.Zombie {
			if !slices.Contains(r.Zombies, t.PID) {
				return fmt.Errorf("process %d in the images is a zombie, but lives: %w", t.PID, ErrNotStopped)
			}
			continue
		}
		live++
		i := slices.IndexFunc(r.Tasks, func(x Task) bool { return x.ID == t.PID })
		if i < 0 || !slices.Contains(inside, r.Tasks[i].PID) {
			return fmt.Errorf("process %d of the images is not in the cgroup: %w", t.PID, ErrNotStopped)
		}
		if !slices.Equal(slices.Sorted(slices.Values(t.Threads)), slices.Sorted(slices.Values(r.Tasks[i].TIDs))) {
			return fmt.Errorf("process %d has other threads in the images: %w", t.PID, ErrNotStopped)
		}
	}
	if live != len(r.Tasks) || live != len(inside) || len(dumped) != live+len(r.Zombies) {
		return fmt.Errorf("%d processes in the images, %d frozen: %w", live, len(inside), ErrNotStopped)
	}
	return nil
}

// stillFrozen is the last look before a grant.
func (d *Dump) stillFrozen() error {
	frozen, err := d.h.event(d.undo.Cgroup, "frozen")
	if err != nil {
		return err
	}
	if !frozen {
		return fmt.Errorf("cgroup %s has been thawed: %w", d.undo.Cgroup, ErrNotStopped)
	}
	for _, t := range d.result.Tasks {
		if _, start, err := readStat(t.PID); err != nil || start != t.StartTime {
			return fmt.Errorf("process %d has ended: %w", t.PID, ErrNotStopped)
		}
	}
	return nil
}

// recheck reads the flags of the frozen tasks' mappings once more, beside what follows the freeze; Check waits for it.
// Snapshots that were taken while frozen need none, nor do those whose flags a BPF iterator has compared.
func (d *Dump) recheck(tasks []Task) {
	checked := make(chan error, 1)
	d.checked = checked
	type pair struct {
		pid int
		old *snapshot
	}
	var list []pair
	for _, t := range tasks {
		if s := d.snaps[t.PID]; !s.frozen && s.flags == nil {
			list = append(list, pair{t.PID, s})
		}
	}
	go func() {
		for _, p := range list {
			s, err := takeSnapshot(nil, p.pid)
			if err == nil {
				err = p.old.sameNature(s)
			}
			if err != nil {
				checked <- fmt.Errorf("process %d: %w", p.pid, err)
				return
			}
		}
		checked <- nil
	}()
}
