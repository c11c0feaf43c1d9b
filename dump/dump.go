package dump

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
)

// A tree that is not frozen in freezeLimit is thawed: some of its tasks stand still, and one is in a system call that cannot be
// interrupted, such as vfork, or gets no CPU. Both mostly pass, so it is tried freezeTries times before the migration fails; between
// two tries the tree runs for freezePause. No task stands still for longer than freezeLimit at a time.
const (
	freezeLimit = 200 * time.Millisecond
	freezeTries = 5
	freezePause = 100 * time.Millisecond
)

// refreezeLimit is for the moment after the dump, when CRIU, too, holds all tasks: they only have to be scheduled once.
const refreezeLimit = 10 * time.Second

// Errors of this package.
var (
	// ErrChanged: what CRIU was not shown has changed its nature between the snapshot and the freeze. Try again.
	ErrChanged = errors.New("the tree changed while it was being frozen")
	// ErrNotStopped: the tree is not as it must be for a grant.
	ErrNotStopped = errors.New("tree is not frozen as it was dumped")
	// ErrState: not now.
	ErrState = errors.New("dump is not in a state for this")
)

type state int

const (
	statePrepared state = iota
	stateFrozen
	stateGranted
	stateKilled
	stateUndone
)

func (s state) String() string {
	return [...]string{"prepared", "frozen", "granted", "killed", "undone"}[s]
}

// Dump is one dump of one tree. See the package's doc for the order of calls.
type Dump struct {
	o      Options
	log    *slog.Logger
	images string
	h      *hierarchy
	ns     *namespaces
	thread *nsThread
	keeper *keeper
	worker *criu.Worker
	flags  *flagReader // nil where the kernel has no BPF iterator for us

	cancel   context.CancelFunc // ends criu's request
	release  chan struct{}      // closed: criu may go on from pre-dump
	held     chan struct{}      // closed by criu's pre-dump
	complete chan struct{}      // closed by criu's post-dump: the images are complete
	dumped   chan struct{}      // closed when the request has been answered
	dumpErr  error              // then

	mu       sync.Mutex
	state    state
	undo     undoState
	snaps    map[int]*snapshot // by pid
	objects  objects
	procs    []process
	result   *Result
	checked  chan error // what the second look at the flags will find; nil: it has
	checkErr error
	closed   bool
}

// Prepare does all that can be done while the tree runs. ctx bounds Prepare alone.
func Prepare(ctx context.Context, o Options) (*Dump, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := &Dump{
		o: o, log: o.Log.With("part", "dump"), snaps: map[int]*snapshot{},
		release: make(chan struct{}), held: make(chan struct{}), complete: make(chan struct{}), dumped: make(chan struct{}),
	}
	if err := d.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare dump of process %d: %w", o.PID, err), d.Close())
	}
	return d, nil
}

func (d *Dump) prepare(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.dumped) // until criu has been asked
	var err error
	if d.procs, err = enumerate(d.o.PID); err != nil {
		return err
	}
	if d.procs[0].zombie {
		return fmt.Errorf("process %d has ended: %w", d.o.PID, unix.ESRCH)
	}
	if err := d.makeDirs(); err != nil {
		return err
	}
	if d.ns, err = openNamespaces(d.o.PID); err != nil {
		return err
	}
	if d.h, err = openHierarchy(); err != nil {
		return err
	}
	if d.thread, err = startNSThread(d.ns.mnt); err != nil {
		return err
	}
	if d.keeper, err = startKeeper(d.o.KeeperArgv, d.ns.mnt, d.h); err != nil {
		return err
	}
	if !d.o.hooks.noBPF {
		if d.flags, err = openFlagReader(); err != nil {
			d.log.Info("flags of mappings are read again after the freeze", "why", err)
		}
	}
	if err := d.gather(); err != nil {
		return err
	}
	if err := d.startCRIU(ctx); err != nil {
		return err
	}
	// The snapshots come last: the younger they are, the less has changed.
	if err := d.snapshots(); err != nil {
		return err
	}
	if d.o.hooks.prepared != nil {
		d.o.hooks.prepared(d.worker.PID())
	}
	return nil
}

func (d *Dump) snapshots() error {
	clear(d.snaps)
	for _, p := range d.procs {
		if p.zombie {
			continue
		}
		s, err := takeSnapshot(d.flags, p.pid)
		if gone(err) {
			continue // Freeze looks again
		}
		if err != nil {
			return err
		}
		d.snaps[p.pid] = s
	}
	return nil
}

// Look looks at the tree again, which runs: Tasks are those of now.
func (d *Dump) Look() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != statePrepared {
		return fmt.Errorf("look at process %d: dump is %v: %w", d.o.PID, d.state, ErrState)
	}
	procs, err := enumerate(d.o.PID)
	if err != nil {
		return err
	}
	d.procs = procs
	return nil
}

// Renew takes the snapshots anew, if Freeze comes long after Prepare, or mappings have been registered with a userfaultfd since.
func (d *Dump) Renew() error {
	if err := d.Look(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.snapshots()
}

// Holds says whether a process is in the cgroup of the tree: one of its own, dying ones included. After Prepare.
func (d *Dump) Holds(pid int) bool {
	cg, err := d.h.of(pid)
	return err == nil && cg == d.undo.Cgroup
}

// Tasks lists the live processes as they were when they were last looked at, without regions before Freeze.
func (d *Dump) Tasks() []Task {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.result != nil {
		return slices.Clone(d.result.Tasks)
	}
	var list []Task
	for _, p := range d.procs {
		if p.zombie {
			continue
		}
		t := Task{ID: p.vpid, PID: p.pid, StartTime: p.start, TIDs: p.tids}
		if s := d.snaps[p.pid]; s != nil {
			for i := range s.mappings {
				if s.mappings[i].hidable() {
					t.Bytes += s.mappings[i].rss + s.mappings[i].swap
				}
			}
		}
		list = append(list, t)
	}
	return list
}

// Abort undoes all: the tree runs as before, each process in the cgroup and the state that it had. Not after Granted.
// May be called more than once.
func (d *Dump) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.abort()
}

func (d *Dump) abort() error {
	switch d.state {
	case stateUndone:
		return nil
	case stateGranted, stateKilled:
		return fmt.Errorf("abort dump of process %d: it is %v: %w", d.o.PID, d.state, ErrState)
	}
	d.state = stateUndone
	errs := []error{d.endCRIU()}
	if d.checked != nil {
		d.checkErr = <-d.checked
		d.checked = nil
	}
	inMount := func(f func() error) error { return nil }
	if d.thread != nil {
		inMount = d.thread.do
	}
	if d.h != nil {
		errs = append(errs, d.undo.undo(d.h, inMount))
	} else if d.undo.Temp != "" {
		errs = append(errs, os.RemoveAll(d.undo.Temp))
	}
	err := errors.Join(errs...)
	if d.keeper != nil && err == nil {
		if kerr := d.keeper.end(keeperMessage{Done: true}); kerr != nil {
			d.log.Warn("tell keeper that all is undone", "err", kerr) // it may have been killed; nothing is left for it
		}
	} else if d.keeper != nil { // this process may be short of descriptors, for example, which a new one has
		kerr := d.keeper.leave()
		if kerr == nil {
			d.log.Warn("the keeper has undone what this process could not", "err", err)
			return nil
		}
		err = errors.Join(err, kerr)
	}
	if err != nil {
		return fmt.Errorf("abort dump of process %d: %w", d.o.PID, err)
	}
	return nil
}

// Check is the last look before a grant: nothing of what CRIU was not shown has changed its nature, and the tree is
// frozen. Where the kernel has no BPF iterator it waits for smaps to be read again. After an error Abort is the way.
func (d *Dump) Check() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.check()
}

func (d *Dump) check() error {
	if d.state != stateFrozen {
		return fmt.Errorf("grant process %d: dump is %v: %w", d.o.PID, d.state, ErrState)
	}
	if d.checked != nil {
		d.checkErr = <-d.checked
		d.checked = nil
	}
	if d.checkErr != nil {
		return fmt.Errorf("grant process %d: %w", d.o.PID, d.checkErr)
	}
	if err := d.stillFrozen(); err != nil {
		return fmt.Errorf("grant process %d: %w", d.o.PID, err)
	}
	return nil
}

// Granted makes the freeze final: the keeper will never thaw, and each task has a SIGSTOP pending, so that it stays even
// if somebody thaws the cgroup. There is no Abort afterwards. The order that leaves no gap, whenever this process is
// killed:
//
//	Check                       an error: Abort
//	write the record, fsync     an error: Abort. From here on the keeper does not thaw (Options.GrantRecord)
//	Granted
//	send the grant
//
// An error means that the tree is not frozen any more, by somebody else's hand.
func (d *Dump) Granted() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state == stateGranted {
		return nil
	}
	if err := d.check(); err != nil {
		return err
	}
	if err := d.keeper.end(keeperMessage{Granted: true}); err != nil {
		// It did not hear, or did not say so. Dead it does nothing.
		d.log.Warn("tell keeper of the grant", "err", err)
		if err := d.stillFrozen(); err != nil {
			return fmt.Errorf("grant process %d: %w", d.o.PID, err)
		}
	}
	d.state = stateGranted
	return d.pin()
}

// KillTree kills the frozen tree and waits until it is gone. Only after Granted.
func (d *Dump) KillTree() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state == stateKilled {
		return nil
	}
	if d.state != stateGranted {
		return fmt.Errorf("kill tree of process %d: dump is %v: %w", d.o.PID, d.state, ErrState)
	}
	if err := d.h.write(d.undo.Cgroup, "cgroup.kill", "1"); err != nil {
		return fmt.Errorf("kill tree of process %d: %w", d.o.PID, err)
	}
	if err := d.h.await(context.Background(), d.undo.Cgroup, "populated", false, time.Minute); err != nil {
		return fmt.Errorf("kill tree of process %d: %w", d.o.PID, err)
	}
	d.state = stateKilled
	var err error
	if len(d.undo.Remaps) > 0 {
		err = d.thread.do(func() error { return removeRemaps(d.undo.Remaps) })
	}
	return errors.Join(err, d.h.remove(d.undo.Cgroup))
}

// Close frees what is held here. Before the grant it is an Abort; after it the frozen tree stays as it is. May be
// called more than once.
func (d *Dump) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	var err error
	if d.state < stateGranted {
		err = d.abort()
	} else if d.undo.Temp != "" {
		err = os.RemoveAll(d.undo.Temp)
	}
	err = errors.Join(err, d.endCRIU())
	if d.keeper != nil {
		d.keeper.in.Close()
		d.keeper.outRaw.Close()
		_ = d.keeper.cmd.Wait() // an error is told by end
	}
	if d.thread != nil {
		d.thread.close()
	}
	if d.flags != nil {
		d.flags.close()
	}
	if d.ns != nil {
		d.ns.close()
	}
	if d.h != nil {
		d.h.root.Close()
	}
	return err
}
