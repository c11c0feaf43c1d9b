package detach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/internal/urgent"
)

// Options of a Switch. All but Log are needed.
type Options struct {
	Tasks   func() ([]int, error) // processes of the tree
	MountNS int                   // a process whose mount namespace and root are the tree's
	Dev     uint64                // device number of the file system that the tree leaves
	// Settle is called when the tree is stopped: it brings the last bytes over and says where the local files of these inodes are. An error lets the
	// tree go on as before.
	Settle func(ctx context.Context, inodes []uint64) (Local, error)
	Remote []string // directories that stay on the old file system, at their places below the new root
	// Streams are pipes and sockets of the tree that get another end.
	Streams []Stream
	Log     *slog.Logger

	committed func(Report)       // all is in its place, and nothing runs yet
	park      func(point string) // for tests; see points in apart.go
	stopped   *stopped
}

// Report of a switch that is done.
type Report struct {
	StopMS      float64 // no thread of the tree ran
	SettleMS    float64 // of that, in Settle
	Processes   int
	Threads     int
	Descriptors int
	Mappings    int
	Remote      int // files and directories in use that stay on the old file system
	Connected   int // descriptors of connected sockets: nodes of the old file system are theirs until they are closed, and nothing is asked of it
}

// Broken says that the switch failed after it could no longer be undone.
type Broken struct{ Err error }

func (b *Broken) Error() string { return "leaving the file system failed half way: " + b.Err.Error() }

// Unwrap is the reason.
func (b *Broken) Unwrap() error { return b.Err }

// Switch moves the tree. After *Stuck, or any error but *Broken, it runs as before.
func Switch(ctx context.Context, o Options) (rep Report, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.park == nil {
		o.park = func(string) {}
	}
	// ptrace wants one thread. It ends then: a thread of the tree that did not stop in time, because it waits for the old file system, can't be let go
	// one by one (ESRCH), and would stop later, for nobody; the kernel lets it go when its tracer ends (kernel/ptrace.c, exit_ptrace).
	criu.OnThrowawayThread(func() { rep, err = o.switchNow(ctx) })
	return rep, err
}

func (o *Options) switchNow(ctx context.Context) (Report, error) {
	defer urgent.Thread()()
	flags, err := surveyed(o) // costly, so before the stop
	if err != nil {
		return Report{}, err
	}
	dbs, err := databasesOf(o)
	if err != nil {
		return Report{}, err
	}
	o.stopped = &stopped{known: map[int]bool{}}
	began := time.Now()
	var rep Report
	err = o.switchStopped(ctx, flags, dbs, &rep)
	rep.Threads = len(o.stopped.tasks)
	var done func()
	if err == nil {
		done = func() {
			o.park("release")
			rep.StopMS = ms(time.Since(began))
			if o.committed != nil {
				o.committed(rep)
			}
			o.park("switched")
		}
	}
	if rerr := o.stopped.release(done); rerr != nil {
		err = &Broken{errors.Join(err, rerr)}
	}
	rep.StopMS = ms(time.Since(began))
	for _, f := range o.stopped.later {
		f.Close()
	}
	return rep, err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Look says what keeps the tree from being moved, while it runs.
func Look(o Options) ([]string, error) {
	s, err := o.survey()
	if err != nil {
		return nil, err
	}
	return s.stuck, nil
}

func (o *Options) survey() (*survey, error) {
	pids, err := o.Tasks()
	if err != nil {
		return nil, fmt.Errorf("list processes of the tree: %w", err)
	}
	var tasks []*task
	for _, pid := range pids {
		tids, err := numbers(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			continue
		}
		for _, tid := range tids {
			tasks = append(tasks, &task{pid: pid, tid: tid})
		}
	}
	return look(o, tasks, flagCache{})
}

func surveyed(o *Options) (flagCache, error) {
	pids, err := o.Tasks()
	if err != nil {
		return nil, fmt.Errorf("list processes of the tree: %w", err)
	}
	c := flagCache{}
	for _, pid := range pids {
		all, err := flagsOf(pid, o.Dev)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read mappings of process %d: %w", pid, err)
		}
		c[pid] = all
	}
	return c, nil
}

// switchStopped does all that the tree is stopped for.
func (o *Options) switchStopped(ctx context.Context, flags flagCache, dbs databases, rep *Report) error {
	if err := o.stopped.stopAll(o.Tasks); err != nil {
		return err
	}
	o.park("stopped")
	s, err := look(o, o.stopped.tasks, flags)
	if err != nil {
		return err
	}
	all, err := mountsOf(o.MountNS)
	if err != nil {
		return fmt.Errorf("read mounts of the tree: %w", err)
	}
	move, shm, err := planMounts(all, o.Dev)
	if err != nil {
		return err
	}
	if len(s.stuck) > 0 {
		return &Stuck{s.stuck}
	}
	if err := s.writeBack(ctx); err != nil {
		return err
	}
	stay, err := o.openStaying(ctx, s)
	if err != nil {
		return err
	}
	defer stay.close()
	old, err := o.openOldRoot(ctx, move, shm)
	if err != nil {
		return err
	}
	defer old.close()
	began := time.Now()
	local, err := o.Settle(ctx, s.inodes())
	rep.SettleMS = ms(time.Since(began))
	if err != nil {
		return fmt.Errorf("settle files: %w", err)
	}
	if local.Files == nil {
		local.Files = map[uint64]string{}
	}
	if err := s.apart(local); err != nil {
		return err
	}
	o.park("settled")
	local.Files[s.root] = "/"
	m, binds, err := newMounts(local, o.MountNS)
	if err != nil {
		return err
	}
	defer m.close()
	w := &switching{o: o, s: s, local: local, dbs: dbs, opened: map[fileKey]*os.File{}}
	defer w.close()
	stay.take(w)
	if err := o.stopped.bind(true); err != nil { // from here on the tree is not what it was before
		return err
	}
	err = m.attach(local, binds, stay, old, move, shm)
	if err == nil {
		w.inRoot, err = newFSThread(func() error {
			if err := unix.Fchdir(m.root); err != nil {
				return err
			}
			return unix.Chroot(".")
		})
	}
	if err == nil {
		o.park("open")
		err = w.untilPivot(m)
	}
	if _, broken := errors.AsType[*Broken](err); err != nil && !broken {
		for _, p := range s.processes {
			err = errors.Join(err, p.undo())
		}
		return errors.Join(err, m.back())
	}
	o.park("commit")
	for _, p := range s.processes {
		rep.Descriptors += len(p.fds)
		rep.Mappings += len(p.maps)
		if cerr := w.commit(p); cerr != nil {
			err = errors.Join(err, cerr)
		}
	}
	rep.Processes, rep.Remote, rep.Connected = len(s.processes), len(s.left), s.connected
	if err != nil {
		err = &Broken{err}
	}
	return err
}

func (w *switching) untilPivot(m *mounts) error {
	if err := w.openAll(); err != nil {
		return err
	}
	if err := w.findDatabases(); err != nil {
		return err
	}
	for _, p := range w.s.processes {
		if err := w.prepare(p); err != nil {
			return fmt.Errorf("prepare process %d: %w", p.pid, err)
		}
	}
	w.o.park("pivot")
	return m.pivot()
}
