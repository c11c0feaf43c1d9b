package memory

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// Region is a private anonymous range of a task as it was at the source, restored lazily.
type Region struct {
	Start, End uint64
	WipeOnFork bool // VmFlags wf: a child has zeros here
}

// TaskMem is the lazy memory of one restored process, or, if its ID says so, a shared object: one region then, from 0 on.
type TaskMem struct {
	ID      uint32 // its pid in the capsule, which is its pid at the source
	Regions []Region
	Shared  []SharedRange `json:",omitempty"`
	// Huge are ranges of transparent huge pages that it had, in units of 2 MB: first, number. The engine does not care.
	Huge [][2]uint64 `json:",omitempty"`
}

// Want is a request for pages of the source.
type Want struct {
	ID     uint64
	Task   uint32 // source task
	Addr   uint64 // source address
	Pages  uint32
	Urgent bool // a thread waits

	Prefetch bool // a thread may soon: it comes after those that are urgent, and before all else

	More []Span // of the same task, behind Pages in this order: what is missing lies scattered
}

// Span is pages from a source address on.
type Span struct {
	Addr  uint64
	Pages uint32
}

// Total is how many pages are wanted.
func (w Want) Total() uint64 {
	n := uint64(w.Pages)
	for _, s := range w.More {
		n += uint64(s.Pages)
	}
	return n
}

// rank orders wants: faults, then what may become one.
func (w Want) rank() int {
	switch {
	case w.Urgent:
		return 0
	case w.Prefetch:
		return 1
	}
	return 2
}

// RunKind says what the source has in a run of pages. The numbers are pagesrv's.
type RunKind = uint8

// Kinds of runs.
const (
	Data   RunKind = 1
	Zero   RunKind = 2
	Guard  RunKind = 3
	Poison RunKind = 4
	Error  RunKind = 5
)

// Run is a run of pages of one kind.
type Run struct {
	Kind  uint8
	Pages uint32
}

// Bringer sends wants to the handler. Ask must not block for long and must not call the engine.
type Bringer interface{ Ask(Want) error }

// Options of an Engine; only Tasks has to be set.
type Options struct {
	Tasks []TaskMem
	// Window is how many bulk wants are in flight (default 8), BulkPages their size (default 256).
	Window, BulkPages int
	// Ranges is how many ranges one bulk want may name (default 1); together they are BulkPages at most.
	Ranges int
	// FaultPages is the aligned block that a fault asks for (default 8).
	FaultPages int
	// Room is how many bytes of memory the tree may still take; it is asked only when processes fork. nil: any number.
	Room func() uint64
	// ForkWait is how long a fork waits at most for memory (default 10 s).
	ForkWait time.Duration
	// Quiesce stops the tree's threads where they run in user mode, and lets them go on. nil: nothing does.
	Quiesce func(stop bool) error
	// Proc is where the tasks' /proc is (default /proc).
	Proc string
	Log  *slog.Logger

	hooks hooks
}

// hooks let tests look inside; all may be nil.
type hooks struct {
	settled func(m *mm) // an mm's batch was applied; the lock is held
}

// ErrClosed is what a closed engine answers.
var ErrClosed = errors.New("memory engine is closed")

// Engine fills the memory of one migrated tree. See the package's doc.
type Engine struct {
	opt Options
	log *slog.Logger

	epoll, kick int // the loop's epoll and the eventfd that wakes it
	wg          sync.WaitGroup
	drained     chan struct{}
	failed      []failedWatch // the loop's

	first     atomic.Int32 // who wait for the lock on behalf of a thread
	mu        sync.Mutex   // guards all below, and every read of events and every fill
	tasks     map[uint32]*task
	regions   []*region
	mms       map[int]*mm // by descriptor
	objects   []*object
	aliens    map[uint32]bool // processes without an object; a fork may give a number to another
	gone      map[uint32]bool // processes that missed pages when their memory went away, or while they dumped core
	watched   []Watched
	bringer   Bringer
	wants     map[uint64]*want
	nextID    uint64
	retries   []*want // those that wait for their time
	bulk      bulk
	ahead     ahead
	predictor predictor
	shortOf   time.Time // until then faults are not asked for either: pages could not be filled
	parked    int       // bytes kept in memory because their mm was not settled
	outbox    []Want
	closing   []*uffd // to be closed when the lock is released
	stats     counters
	shortage  shortage
	buffer    *buffer       // what was copied before the freeze, and has not been placed; nil: nothing
	filled    chan struct{} // nil: nobody has asked
	full      bool          // filled is closed
	done      bool
	closed    bool
}

// task is a restored process that Options.Tasks named.
type task struct {
	regions []*region
	shared  []SharedRange
	added   bool
}

// New makes an engine for the tasks; their userfaultfds come by AddTask.
func New(o Options) *Engine {
	if o.Window <= 0 {
		o.Window = 8
	}
	if o.BulkPages <= 0 {
		o.BulkPages = 256
	}
	if o.Ranges <= 0 {
		o.Ranges = 1
	}
	if o.FaultPages <= 0 {
		o.FaultPages = 8
	}
	if o.ForkWait <= 0 {
		o.ForkWait = forkWait
	}
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		opt: o, log: o.Log, epoll: -1, kick: -1,
		drained: make(chan struct{}), tasks: map[uint32]*task{}, mms: map[int]*mm{}, gone: map[uint32]bool{}, wants: map[uint64]*want{},
	}
	for _, t := range o.Tasks {
		e.tasks[t.ID] = e.newTask(t)
	}
	slices.SortFunc(e.regions, func(a, b *region) int {
		if a.task != b.task {
			return int(a.task) - int(b.task)
		}
		if a.start < b.start {
			return -1
		}
		return 1
	})
	return e
}

func (e *Engine) newTask(t TaskMem) *task {
	n := &task{shared: t.Shared}
	for _, r := range t.Regions {
		if r.Start >= r.End || r.Start%pageSize != 0 || r.End%pageSize != 0 {
			e.log.Error("region is no range of pages", "task", t.ID, "start", r.Start, "end", r.End)
			continue
		}
		pages := int((r.End - r.Start) / pageSize)
		g := &region{
			task: t.ID, start: r.Start, pages: pages, wipeOnFork: r.WipeOnFork,
			flight: newBitset(pages), urgent: map[int]*want{},
		}
		n.regions = append(n.regions, g)
		e.regions = append(e.regions, g)
	}
	return n
}

// AddTask takes over the userfaultfd of a restored process. Its faults are served from now on.
func (e *Engine) AddTask(id uint32, f *os.File) error {
	e.mu.Lock()
	defer e.unlock()
	t := e.tasks[id]
	switch {
	case e.closed:
		return fmt.Errorf("add task %d: %w", id, ErrClosed)
	case t == nil:
		return fmt.Errorf("add task %d: %w", id, unix.ESRCH)
	case t.added:
		return fmt.Errorf("add task %d: %w", id, unix.EEXIST)
	}
	if err := e.startLoop(); err != nil {
		return fmt.Errorf("add task %d: %w", id, err)
	}
	u, err := takeUffd(f)
	if err != nil {
		return fmt.Errorf("add task %d: %w", id, err)
	}
	m := newMM(id, u)
	for _, r := range t.regions {
		if was := m.lay.put(segment{start: r.start, end: r.start + uint64(r.pages)*pageSize, r: r}); len(was) > 0 {
			e.log.Error("regions overlap", "task", id, "start", r.start)
		}
		m.adopt(r, newBitset(r.pages), newBitset(r.pages))
	}
	if err := e.addMM(m); err != nil {
		return fmt.Errorf("add task %d: %w", id, err)
	}
	t.added = true
	e.log.Debug("task added", "task", id, "regions", len(t.regions))
	return nil
}

// addMM starts watching m. If that fails the descriptor stays open: closing it would make zeros of what is missing.
func (e *Engine) addMM(m *mm) error {
	e.mms[m.fd.fd] = m
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(m.fd.fd)}
	if err := unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, m.fd.fd, &ev); err != nil {
		return fmt.Errorf("watch userfaultfd: %w", err)
	}
	return nil
}

// SetBringer replaces the handler: all that is outstanding is asked again. With nil there is none, and threads wait.
func (e *Engine) SetBringer(b Bringer) {
	e.mu.Lock()
	defer e.unlock()
	e.bringer = b
	e.retries = e.retries[:0]
	e.outbox = e.outbox[:0]
	if b == nil {
		return
	}
	ids := make([]uint64, 0, len(e.wants))
	for id := range e.wants {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		e.ask(e.wants[id])
	}
}

// StartBulk lets the engine ask for everything that is missing. Without it only faults are served, and nothing is closed.
func (e *Engine) StartBulk() {
	e.mu.Lock()
	defer e.unlock()
	if !e.bulk.on {
		e.bulk.on = true
		e.bulk.todo = slices.Clone(e.regions)
	}
	e.wakeLoop()
	e.pump()
	e.finish()
}

// Absent says that the source has nothing in these ranges of a task (its addresses): they are zero, and not asked for. It
// spares the walk over large reservations.
func (e *Engine) Absent(task uint32, ranges []Region) error {
	e.mu.Lock()
	defer e.unlock()
	t := e.tasks[task]
	if t == nil {
		return fmt.Errorf("note absent memory of task %d: %w", task, unix.ESRCH)
	}
	if !t.added {
		return fmt.Errorf("note absent memory of task %d: not added: %w", task, unix.EAGAIN)
	}
	for _, a := range ranges {
		if a.Start >= a.End || a.Start%pageSize != 0 || a.End%pageSize != 0 {
			return fmt.Errorf("note absent memory %#x-%#x: %w", a.Start, a.End, unix.EINVAL)
		}
	}
	for _, a := range ranges {
		for _, r := range t.regions {
			lo, hi := max(a.Start, r.start), min(a.End, r.start+uint64(r.pages)*pageSize)
			if lo < hi {
				e.leaveZero(r, int((lo-r.start)/pageSize), int((hi-lo)/pageSize))
			}
		}
	}
	e.finish()
	return nil
}

// Drained is closed when every page of every mm has been filled or dropped, and the userfaultfds are closed.
func (e *Engine) Drained() <-chan struct{} { return e.drained }

// unlock releases the lock, then does what must not be done under it: asks the handler, closes descriptors.
func (e *Engine) unlock() {
	out, b := e.outbox, e.bringer
	e.outbox = nil
	closing := e.closing
	e.closing = nil
	finished := e.done
	e.done = false
	e.mu.Unlock()
	for _, u := range closing {
		if err := u.close(); err != nil {
			e.log.Error("close userfaultfd", "err", err)
		}
	}
	if finished {
		close(e.drained)
	}
	slices.SortStableFunc(out, func(a, b Want) int { return a.rank() - b.rank() })
	for _, w := range out {
		if err := b.Ask(w); err != nil {
			e.Failed(w.ID, fmt.Errorf("ask handler: %w", err))
		}
	}
}

// Close ends the engine. Pages that are still missing become zeros, so the tree must be dead, or drained.
func (e *Engine) Close() error {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		e.bringer = nil
		e.endCopied()
		for _, m := range e.mms {
			e.dropMM(m)
		}
	}
	e.wakeLoop()
	e.unlock()
	e.wg.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	var err error
	for _, fd := range []*int{&e.epoll, &e.kick} {
		if *fd >= 0 {
			if cerr := unix.Close(*fd); cerr != nil && err == nil {
				err = fmt.Errorf("close memory engine: %w", cerr)
			}
			*fd = -1
		}
	}
	return err
}

// after is the wait before a want is asked again.
func after(tries int) time.Duration { return min(10*time.Millisecond<<min(tries, 7), time.Second) }
