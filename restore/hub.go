package restore

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/urgent"
	"github.com/lazymig/lazymig/restore/memory"
)

// hub joins the engine with whichever handler there is.
type hub struct {
	log   *slog.Logger
	event func(Event)

	mu     sync.Mutex
	engine *memory.Engine    // nil before a restore
	asked  func(task uint32) // told of each urgent want; must not call the engine
	tasks  []memory.TaskMem
	link   *link          // nil without a handler
	wg     sync.WaitGroup // links and the drain's watcher
	drains bool
	closed chan struct{}
	once   sync.Once // close
}

func newHub(log *slog.Logger, event func(Event)) *hub {
	return &hub{log: log, event: event, closed: make(chan struct{})}
}

var (
	errNotRestored = errors.New("nothing has been restored")
	errClosing     = errors.New("the capsule ends")
)

// ended says whether close has begun: nothing may be added to wg then. h.mu is held.
func (h *hub) ended() bool {
	select {
	case <-h.closed:
		return true
	default:
		return false
	}
}

// setEngine is called once.
func (h *hub) setEngine(e *memory.Engine, tasks []memory.TaskMem, asked func(task uint32)) {
	h.mu.Lock()
	h.engine, h.asked, h.tasks = e, asked, tasks
	l := h.link
	h.mu.Unlock()
	if l != nil {
		l.watch(e)
		e.SetBringer(l)
	}
}

func (h *hub) getEngine() *memory.Engine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.engine
}

// attach makes the process at the other end of f the handler. An earlier one is dropped.
func (h *hub) attach(f *os.File) error {
	l, err := newLink(h, f)
	if err != nil {
		return err
	}
	h.mu.Lock()
	if h.ended() { // the agent replaces the handler that close took leave of
		h.mu.Unlock()
		l.sock.Close()
		unmapSlots(h.log, l.mem)
		return errClosing
	}
	old := h.link
	h.link = l
	e := h.engine
	h.wg.Go(l.serve)
	h.mu.Unlock()
	if old != nil {
		old.end()
	}
	if e != nil {
		l.watch(e)
		e.SetBringer(l)
	}
	return nil
}

// lost is told by a link that has ended. The engine keeps what is wanted until the next one.
func (h *hub) lost(l *link) {
	h.mu.Lock()
	current := h.link == l
	if current {
		h.link = nil
	}
	e := h.engine
	h.mu.Unlock()
	if current && e != nil {
		e.SetBringer(nil)
		h.mu.Lock()
		l := h.link
		h.mu.Unlock()
		if l != nil { // one has been attached in between
			e.SetBringer(l)
		}
	}
}

// drain starts the push and tells of its progress. What was copied ahead is placed, too, now or when drain is called again, without hold.
func (h *hub) drain(hold bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, again, tasks := h.engine, h.drains, h.tasks
	if e != nil && !hold {
		e.PlaceCopied()
	}
	h.drains = e != nil
	switch {
	case e == nil:
		return errNotRestored
	case h.ended():
		return errClosing
	case again:
		return nil
	}
	urgent.Share() // the guardian's haste ends here
	h.wg.Go(func() {
		h.surveyAll(e, tasks)
		e.StartBulk()
	})
	h.wg.Go(func() { h.watch(e, hold) })
	return nil
}

const progressEvery = 200 * time.Millisecond

func (h *hub) watch(e *memory.Engine, hold bool) {
	t := time.NewTicker(progressEvery)
	defer t.Stop()
	var filled <-chan struct{}
	if hold {
		filled = e.Filled()
	}
	for {
		select {
		case <-filled:
			h.event(Event{Kind: EventFilled, Stats: e.Stats()})
			filled = nil
		case <-e.Drained():
			h.event(Event{Kind: EventDrained, Stats: e.Stats()})
			return
		case <-t.C:
			h.event(Event{Kind: EventProgress, Stats: e.Stats()})
		case <-h.closed:
			return
		}
	}
}

// close is for the guardian's end.
func (h *hub) close() { h.once.Do(h.end) }

func (h *hub) end() {
	h.mu.Lock()
	l, e := h.link, h.engine
	close(h.closed)
	h.mu.Unlock()
	if l != nil {
		l.end()
	}
	h.wg.Wait()
	if e != nil {
		if err := e.Close(); err != nil {
			h.log.Error("close engine", "err", err)
		}
	}
}

// unmapSlots is for a link's end.
func unmapSlots(log *slog.Logger, mem []byte) {
	if err := unix.Munmap(mem); err != nil {
		log.Error("unmap slots", "err", err)
	}
}
