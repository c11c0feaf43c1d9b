package restore

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/restore/memory"
)

// link is the guardian's end of one handler process: its memory.Bringer. It hands out slots: a want goes to the handler
// when there is one, urgent wants first, so that a socket's buffer always holds what is in flight and Ask does not block.
// Slots are this link's own: what a dying handler still writes reaches nobody.
type link struct {
	hub  *hub
	sock *fdpass.Socket
	mem  []byte

	mu     sync.Mutex
	seq    uint64
	free   []uint32
	flight map[uint64]slotWant
	urgent []memory.Want // no slot yet
	ahead  []memory.Want // prefetch; the engine bounds them
	bulk   []memory.Want
	bulks  int // in flight or being handed on
	ended  bool

	fd      int        // of sock
	gone    chan error // gets why it has ended
	watched bool       // by the engine's loop, which owns what follows
	buf     []byte
	todo    []linkMessage // for Work: what was prefetched, then bulk

	surveys map[uint64]chan linkMessage // closed at the end
}

var errNoHandler = errors.New("the handler has ended")

func newLink(h *hub, f *os.File) (*link, error) {
	sock, err := fdpass.NewInThread(f)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("lazymig-slots", unix.MFD_CLOEXEC)
	if err != nil {
		sock.Close()
		return nil, fmt.Errorf("make slots: %w", err)
	}
	memfd := os.NewFile(uintptr(fd), "slots")
	defer memfd.Close()
	l := &link{hub: h, sock: sock, fd: sock.FD(), gone: make(chan error, 1), buf: make([]byte, fdpass.MaxMessage), flight: make(map[uint64]slotWant), surveys: make(map[uint64]chan linkMessage)}
	if err = memfd.Truncate(slotCount * slotSize); err == nil {
		l.mem, err = mapSlots(fd, slotCount)
	}
	if err != nil {
		sock.Close()
		return nil, fmt.Errorf("make slots: %w", err)
	}
	for i := range uint32(slotCount) {
		l.free = append(l.free, i)
	}
	if err := sock.Send(welcome(), memfd); err != nil {
		sock.Close()
		unmapSlots(h.log, l.mem)
		return nil, err
	}
	return l, nil
}

// Ask implements memory.Bringer.
func (l *link) Ask(w memory.Want) error {
	if !fits(w) {
		return fmt.Errorf("ask for %d pages in %d ranges: %w", w.Total(), 1+len(w.More), unix.EINVAL)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return errNoHandler
	}
	switch {
	case w.Urgent:
		l.hub.asked(w.Task)
		l.urgent = append(l.urgent, w)
	case w.Prefetch:
		l.ahead = append(l.ahead, w)
	default:
		l.bulk = append(l.bulk, w)
	}
	l.send()
	return nil
}

// send sends what there are slots for. l.mu is held.
func (l *link) send() {
	for len(l.free) > 0 && !l.ended {
		var w memory.Want
		switch {
		case len(l.urgent) > 0:
			w, l.urgent = l.urgent[0], l.urgent[1:]
		case len(l.ahead) > 0:
			w, l.ahead = l.ahead[0], l.ahead[1:]
		case len(l.bulk) > 0 && l.bulks < slotCount-urgentOwn:
			w, l.bulk = l.bulk[0], l.bulk[1:]
			l.bulks++
		default:
			return
		}
		l.seq++
		s := slotWant{seq: l.seq, slot: l.free[len(l.free)-1], want: w}
		l.free = l.free[:len(l.free)-1]
		l.flight[s.seq] = s
		if err := l.sock.Send(s.encode()); err != nil {
			l.hub.log.Debug("ask handler", "err", err)
			l.ended = true // serve is told too; the engine asks the next handler for all that is outstanding
			l.sock.Shutdown()
			if !l.watched {
				l.gone <- errNoHandler
			}
		}
	}
}

// serve waits for the end of the handler, or of this link.
func (l *link) serve() {
	err := <-l.gone
	l.mu.Lock()
	l.ended = true
	for seq, ch := range l.surveys {
		delete(l.surveys, seq)
		close(ch)
	}
	l.mu.Unlock()
	l.sock.Close()
	l.hub.lost(l)
	unmapSlots(l.hub.log, l.mem)
	l.hub.log.Info("handler is lost", "err", err)
}

// watch lets the engine's loop take what the handler says. Before there is an engine the handler has nothing to say.
func (l *link) watch(e *memory.Engine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	if err := e.Watch(l); err != nil {
		l.gone <- err // only once: the link is not watched
		l.ended = true
		return
	}
	l.watched = true
}

// end makes the link end; serve does the rest.
func (l *link) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sock.Shutdown() // read by the loop
	if !l.watched && !l.ended {
		l.ended = true
		l.gone <- errNoHandler
	}
}

// FD implements memory.Watched.
func (l *link) FD() int { return l.fd }

// Ended implements memory.Watched.
func (l *link) Ended(err error) { l.gone <- err }

// Read implements memory.Watched: it takes all that the handler has said. What a thread waits for is handed on at once, the
// rest by Work.
func (l *link) Read() error {
	for {
		n, files, err := l.sock.TryRecv(l.buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		fdpass.CloseAll(files)
		m, err := parseLink(l.buf[:n])
		if err != nil {
			return err
		}
		if err := l.take(m); err != nil {
			return err
		}
	}
}

// Work implements memory.Watched.
func (l *link) Work() (more bool) {
	if len(l.todo) == 0 {
		return false
	}
	m := l.todo[0]
	l.todo = l.todo[1:]
	l.hand(m)
	return len(l.todo) > 0
}

// take takes one message of the handler's.
func (l *link) take(m linkMessage) error {
	l.mu.Lock()
	s, ok := l.flight[m.seq]
	survey := l.surveys[m.seq]
	delete(l.surveys, m.seq)
	l.mu.Unlock()
	switch {
	case survey != nil && m.slot == noSlot && (m.kind == linkFound || m.kind == linkFailed):
		survey <- m // has room for its one answer
		return nil
	case m.kind != linkBrought && m.kind != linkFailed:
		return errMessage
	case !ok || s.slot != m.slot:
		return fmt.Errorf("%w: answer to a want that is not in flight", errMessage)
	}
	m.want = s.want
	if m.kind == linkBrought {
		if err := m.check(s.want); err != nil {
			return err
		}
	}
	// Out of the map now: a second answer to it would be a violation.
	l.mu.Lock()
	delete(l.flight, m.seq)
	l.mu.Unlock()
	switch { // as many as slots at most
	case m.want.Urgent:
		l.hand(m)
	case m.want.Prefetch:
		i := slices.IndexFunc(l.todo, func(m linkMessage) bool { return !m.want.Prefetch })
		if i < 0 {
			i = len(l.todo)
		}
		l.todo = slices.Insert(l.todo, i, m)
	default:
		l.todo = append(l.todo, m)
	}
	return nil
}

// hand gives one answer to the engine and its slot to the next want.
func (l *link) hand(m linkMessage) {
	e := l.hub.getEngine()
	switch {
	case e == nil: // nothing was asked without one
	case m.kind == linkFailed:
		e.Failed(m.want.ID, m.err)
	default:
		if err := e.BroughtInLoop(m.want.ID, m.runs, slotOf(l.mem, m.slot)[:m.bytes]); err != nil {
			l.hub.log.Error("take pages", "err", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = append(l.free, m.slot)
	if !m.want.Urgent && !m.want.Prefetch {
		l.bulks--
	}
	l.send()
}
