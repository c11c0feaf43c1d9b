package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/restore/detach"
	"github.com/lazymig/lazymig/restore/memory"
)

// restoring is the guardian's one restore: criu runs in request, is held by notify at post-restore, and goes on when
// release is closed.
type restoring struct {
	g     *guardian
	cfg   restoreConfig
	lazy  *lazySocket // nil when nothing is lazy
	early *early      // nil when nothing is lazy

	held    chan struct{} // closed at post-restore when all is well
	finish  chan struct{} // closed by Finish: criu may go on to its last step
	ready   chan struct{} // closed at pre-resume: nothing is left to be done but to let the tree run
	release chan struct{} // closed by Release
	done    chan struct{} // closed when criu has answered and ended
	never   bool          // criu died while it held the tree, see ErrNeverRuns; guardian.mu
	at      int64         // ns, just before the first instruction
	root    int           // PID in the capsule; valid after done
	let     sync.Once     // release is closed
	running sync.Once     // reaping has begun; after that:
	pidfd   *os.File      // of the root task; guardian.mu
	pidErr  error
	err     error // valid after done
}

// doRestore answers when the tree is held, or why not.
func (g *guardian) doRestore(m message, files []*os.File) {
	g.answer(m, g.hold(files), nil)
}

func (g *guardian) hold(files []*os.File) error {
	defer fdpass.CloseAll(files)
	if len(files) == 0 {
		return errMessage
	}
	r := &restoring{g: g, held: make(chan struct{}), finish: make(chan struct{}), ready: make(chan struct{}), release: make(chan struct{}), done: make(chan struct{})}
	g.mu.Lock()
	if g.restore != nil || g.group == nil {
		g.mu.Unlock()
		return fmt.Errorf("%w: a capsule serves one restore, after its start", errMessage)
	}
	g.restore = r
	g.mu.Unlock()
	if err := fdpass.Unpack(files[0], &r.cfg); err != nil {
		return err
	}
	if len(r.cfg.Keys) != len(files)-1 {
		return errMessage
	}
	if err := r.begin(files[1:]); err != nil {
		return err
	}
	select {
	case <-r.held:
		return nil
	case <-r.done:
		return r.err
	}
}

// begin starts criu, in the tree's cgroup, and its request.
func (r *restoring) begin(inherit []*os.File) error {
	g := r.g
	if !r.cfg.NotLazy {
		engine := memory.New(memory.Options{Tasks: r.cfg.Tasks, Ranges: min(r.cfg.Parts, pagesrv.MaxParts), Room: func() uint64 { return room(g.group) }, Quiesce: g.quiesce, Log: g.log})
		r.early = newEarly(engine, r.cfg.Early)
		g.hub.setEngine(engine, r.cfg.Tasks, r.early.faulted)
		var err error
		if r.lazy, err = listenLazy(g.dirs.work, engine.AddTask); err != nil {
			return err
		}
	}
	w := g.warm
	if w == nil || len(inherit) > 0 { // descriptors to inherit have to be there from its start
		var err error
		if w, err = g.startCriu(inherit); err != nil {
			return err
		}
		if g.warm != nil {
			if err := g.warm.Close(); err != nil {
				g.log.Warn("end criu that was not needed", "err", err)
			}
		}
	}
	go r.request(w) // ends with criu, at the latest with the namespace
	return nil
}

func (r *restoring) options() *rpc.CriuOpts {
	o := &rpc.CriuOpts{
		ImagesDirFd: new(int32(-1)), ImagesDir: new(byPID1(r.g.dirs.images)), WorkDirFd: new(int32(r.g.dirs.work.Fd())),
		LogLevel: new(int32(max(r.cfg.LogLevel, 1))), RstSibling: new(true), LazyPages: new(!r.cfg.NotLazy),
		ManageCgroups: new(false), ManageCgroupsMode: new(rpc.CriuCgMode_IGNORE),
		TcpClose: new(r.cfg.TCPClose), FileLocks: new(true), ShellJob: new(r.cfg.ShellJob), ExtUnixSk: new(r.cfg.Datagrams),
	}
	for i, key := range r.cfg.Keys {
		o.InheritFd = append(o.InheritFd, &rpc.InheritFd{Key: new(key), Fd: new(int32(criu.FirstExtraFD + i))})
	}
	return o
}

func (r *restoring) request(w *criu.Worker) {
	defer close(r.done)
	pid, err := w.Restore(context.Background(), r.options(), func(script string, _ int32) error { return r.notify(w, script) })
	if err == nil {
		err = w.Wait()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		r.fixRunning()
	}
	if r.lazy != nil {
		r.lazy.close()
	}
	r.root, r.err = int(pid), err
}

// awaitFinish holds the tree at post-restore. Should criu die meanwhile, no gate is opened any more: each task waits in criu's restorer for a word that nobody
// can give. Its driver waits here, and would not see that before its next word.
func (r *restoring) awaitFinish(w *criu.Worker) error {
	select {
	case <-r.finish:
		return nil
	case <-w.Done():
	}
	g := r.g
	g.mu.Lock()
	r.never = !isClosed(r.finish)
	never := r.never
	g.mu.Unlock()
	if !never { // it was about to be told
		return nil
	}
	g.event(Event{Kind: EventNeverRuns, Text: ErrNeverRuns.Error()})
	return ErrNeverRuns
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// fixRunning is what only the tree itself can do, so that calls are made in it. It runs: before, criu traces its root, which is no child of criu. If this process
// dies meanwhile, so does the tree, as always. Nobody reaps yet: that would take the stops away from the tracer.
func (r *restoring) fixRunning() {
	for _, f := range r.cfg.Fixups {
		if err := f.merge(); err != nil {
			r.g.problem(err)
		}
	}
	if err := detach.Relock(r.cfg.Locks); err != nil {
		r.g.problem(fmt.Errorf("POSIX locks on files that are mapped, too, are lost: %w", err))
	}
}

// notify is called by criu's driver; criu waits meanwhile. At post-restore everything of the tree is there and waits in
// criu's restorer.
func (r *restoring) notify(w *criu.Worker, script string) error {
	r.g.log.Debug("criu", "step", script)
	switch script {
	case "pre-restore":
		return r.g.uncover()
	case "post-restore":
		if err := r.settle(); err != nil {
			return err
		}
		r.g.log.Debug("held", "faults", r.faults())
		close(r.held)
		return r.awaitFinish(w)
	case "pre-resume":
		close(r.ready)
		<-r.release
		r.at = time.Now().UnixNano()
	}
	return nil
}

// settle is what has to be true or done before the release.
func (r *restoring) settle() error {
	if r.g.covered {
		return fmt.Errorf("%w: criu restored without saying pre-restore", errMessage)
	}
	if r.lazy != nil {
		var ids []uint32
		for _, t := range r.cfg.Tasks {
			if !memory.IsObject(t.ID) && len(t.Regions)+len(t.Shared) > 0 {
				ids = append(ids, t.ID)
			}
		}
		if err := r.lazy.missing(ids); err != nil {
			return err
		}
		if err := r.share(); err != nil {
			return err
		}
		for _, t := range r.cfg.Tasks {
			if err := checkRegistered(t); err != nil {
				return err
			}
		}
		r.g.hub.getEngine().Anchor()
		if err := r.early.placeAll(); err != nil {
			return err
		}
		if n := r.g.hub.getEngine().Stats().LostPages; n > 0 {
			return fmt.Errorf("%d pages found no memory where they belong", n)
		}
	}
	for _, d := range r.cfg.Databases {
		if err := d.apply(); err != nil {
			return err
		}
	}
	for _, f := range r.cfg.Fixups {
		if err := f.apply(); err != nil {
			r.g.problem(err)
		}
	}
	return nil
}

// doFinish lets criu do what it does after post-restore, such as removing the names that it made, up to pre-resume. Again it tells the same.
func (g *guardian) doFinish(m message) {
	r, err := g.let()
	if err == nil {
		select {
		case <-r.ready:
		case <-r.done:
			select {
			case <-r.ready: // both: it was released before, for an agent that has died since
			default:
				err = fmt.Errorf("criu failed after the release: %w", errors.Join(errEnded, r.err))
			}
		}
	}
	g.answer(m, err, nil)
}

var errEnded = errors.New("it ended before it let the tree go")

// isHeld says whether a tree is held at post-restore, or was. g.mu is held.
func (g *guardian) isHeld() bool { return g.restore != nil && isClosed(g.restore.held) }

// outlive makes the capsule independent of the agent.
func (g *guardian) outlive() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.isHeld() {
		return errNotHeld
	}
	g.outlives = true
	return nil
}

var errNotHeld = errors.New("no tree is held")

// ErrNeverRuns says that criu, or the guardian, has died over a tree that was held at post-restore: no instruction of the tree has run, and none will, as the restorer
// in each task waits for criu. Later, at pre-resume, the tasks would run on when their tracer dies.
var ErrNeverRuns = errors.New("what held the tree has died; the tree has not run and never will")

// let opens the first gate, if it is not open.
func (g *guardian) let() (*restoring, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.restore
	if !g.isHeld() {
		return nil, errNotHeld
	}
	switch {
	case isClosed(r.finish): // looked at first: then done may be closed, too
		return r, nil
	case r.never:
		return nil, ErrNeverRuns
	}
	g.outlives = true
	close(r.finish)
	return r, nil
}

// doRelease lets the tree run. From its first line on the agent may die. Again it tells the same.
func (g *guardian) doRelease(m message) {
	r, err := g.let()
	if err != nil {
		g.answer(m, err, nil)
		return
	}
	r.let.Do(func() { close(r.release) })
	<-r.done
	if r.err != nil {
		g.problem(fmt.Errorf("criu failed after the release: %w", r.err))
		g.answer(m, r.err, nil)
		return
	}
	r.running.Do(func() {
		if err := confineGuardian(); err != nil {
			g.problem(err)
		}
		// Nobody reaps before reap: even a root task that has ended already can be opened.
		fd, err := g.openRoot(r.root)
		if err != nil {
			r.pidErr = fmt.Errorf("open root task %d: %w", r.root, err)
		} else {
			g.mu.Lock()
			r.pidfd = os.NewFile(uintptr(fd), "pidfd")
			g.mu.Unlock()
		}
		if e := g.hub.getEngine(); e != nil {
			g.cores = newCores(e, g.event)
			g.cores.watch(r.cfg.Tasks)
		}
		go g.reap(r.root) // ends the process
	})
	if r.pidErr != nil {
		g.answer(m, r.pidErr, nil)
		return
	}
	g.answer(m, nil, resumedAnswer{At: r.at, PID: r.root}, r.pidfd)
}

// openRoot waits while there are no descriptors: the tree runs, and an error here would end it (case "granted/guardian without descriptors" of e2e's TestFaults).
func (g *guardian) openRoot(pid int) (int, error) {
	for said := false; ; said = true {
		fd, err := unix.PidfdOpen(pid, 0)
		if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ENOMEM) {
			return fd, err
		}
		if !said {
			g.problem(fmt.Errorf("open root task %d; trying again until there is room: %w", pid, err))
		}
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // nothing tells when there is room
	}
}

// faults is how often criu itself has waited for a page of the source.
func (r *restoring) faults() uint64 {
	if e := r.g.hub.getEngine(); e != nil {
		return e.Stats().Faults
	}
	return 0
}
