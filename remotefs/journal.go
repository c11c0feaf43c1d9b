package remotefs

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// Journal takes what another server would need to go on after this process is killed: messages for a Standby, in order. Send returns
// when the message can't be lost any more by this process's end, and leaves the descriptor (at most one) open.
type Journal interface {
	Send(b []byte, fds ...int) error
}

// Kinds of messages of a journal. A lookup counts, an answer is kept and a handle stays from journalDone on: it is written before the client gets the answer,
// so what is not there the client asks for again.
const (
	journalReset    = 1 // all that follows up to journalWhole replaces what there was
	journalWhole    = 2
	journalSession  = 3  // client 16
	journalNode     = 4  // id 8, mode 4, device's index 8, hidden 1; descriptor
	journalGone     = 5  // node 8
	journalHandle   = 6  // id 8, node 8, directory 1, request 8; descriptor
	journalReleased = 7  // handle 8
	journalBegin    = 8  // request 8, witness
	journalDone     = 9  // request 8, last 1, a piece of effects and answer
	journalAcked    = 10 // count 4, count × request 8
	journalNamed    = 11 // node 8: it may have this name, too; descriptor, which is not kept
	journalMoved    = 12 // name, name: what has the first, or lies below it, may have the second
)

// journalPiece is how much of an answer goes into one message.
const journalPiece = 100 << 10

// journal is a server's own end. A nil or broken one takes nothing. Send is called under table.mu and session.mu.
type journal struct {
	mu   sync.Mutex
	to   Journal // nil: nobody would go on
	lost func(error)
}

func (j *journal) send(e *wire.Encoder, fds ...int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.to == nil {
		return
	}
	if err := j.to.Send(e.B, fds...); err != nil {
		j.to = nil
		if j.lost != nil {
			go j.lost(fmt.Errorf("write journal of files: %w", err)) // the caller holds locks
		}
	}
}

// end is before the server lets go of everything: that is not to be written down.
func (j *journal) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.to = nil
}

func (j *journal) on() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.to != nil
}

// message begins one.
func message(kind uint8, ids ...uint64) *wire.Encoder {
	e := &wire.Encoder{}
	e.U8(kind)
	for _, id := range ids {
		e.U64(id)
	}
	return e
}

func (j *journal) node(id uint64, fd int, mode uint32, index uint64, hidden bool) {
	e := message(journalNode, id)
	e.U32(mode)
	e.U64(index)
	e.Bool(hidden)
	j.send(e, fd)
}

func (j *journal) moved(from, to string) {
	e := message(journalMoved)
	e.String(from)
	e.String(to)
	j.send(e)
}

func (j *journal) handle(id uint64, fd int, node uint64, dir bool, request uint64) {
	e := message(journalHandle, id, node)
	e.Bool(dir)
	e.U64(request)
	j.send(e, fd)
}

func (j *journal) session(client [wire.FileSessionSize]byte) {
	e := message(journalSession)
	e.B = append(e.B, client[:]...)
	j.send(e)
}

// acked writes down which answers nobody asks for any more.
func (j *journal) acked(ids []uint64) {
	if len(ids) == 0 {
		return
	}
	e := message(journalAcked)
	e.U32(uint32(len(ids)))
	for _, id := range ids {
		e.U64(id)
	}
	j.send(e)
}

// effects are what a request has changed in what the server knows of its client.
type effects struct {
	looked []uint64          // nodes, one lookup each
	forgot []wire.FileForget // counts taken back
	opened []uint64          // handles
}

// countsOf are effects that give each node its count.
func countsOf(counts map[uint64]uint64) *effects {
	f := &effects{}
	for id, n := range counts {
		f.forgot = append(f.forgot, wire.FileForget{Node: id, Count: -n}) // it wraps around
	}
	return f
}

// done writes down that a request is done, how, and what it has changed.
func (j *journal) done(id uint64, f *effects, a *answer) {
	if !j.on() {
		return
	}
	e := &wire.Encoder{}
	e.U32(uint32(len(f.looked)))
	for _, n := range f.looked {
		e.U64(n)
	}
	e.U32(uint32(len(f.forgot)))
	for _, x := range f.forgot {
		e.U64(x.Node)
		e.U64(x.Count)
	}
	e.U32(uint32(len(f.opened)))
	for _, h := range f.opened {
		e.U64(h)
	}
	e.U16(uint16(a.typ))
	e.B = append(append(e.B, a.head...), a.rest...)
	for b := e.B; ; {
		n := min(len(b), journalPiece)
		m := message(journalDone, id)
		m.Bool(n == len(b))
		m.B = append(m.B, b[:n]...)
		j.send(m)
		if b = b[n:]; len(b) == 0 {
			return
		}
	}
}

// SetJournal gives the server a journal, which gets all that there is and then each change. Requests wait meanwhile. lost is called, on a
// goroutine of its own, when it can't be written any more; the server goes on without one.
func (s *Server) SetJournal(to Journal, lost func(error)) {
	s.quiet.Lock() // no request is at work: what there is, is whole
	defer s.quiet.Unlock()
	j := &s.tab.journal
	j.mu.Lock()
	j.to, j.lost = to, lost
	j.mu.Unlock()
	j.send(message(journalReset))
	counts := map[uint64]uint64{}
	s.tab.mu.Lock()
	for id, n := range s.tab.nodes {
		j.node(id, n.fd, n.mode, n.fs.index, n.fs.hidden)
		counts[id] = n.lookups
	}
	for id, h := range s.tab.handles {
		if h.fd >= 0 { // else it is yet to be opened, or could not be
			j.handle(id, h.fd, h.node.id, h.dir != nil, 0)
		}
	}
	s.tab.mu.Unlock()
	j.done(0, countsOf(counts), &answer{}) // no request has this number
	n := &s.sess
	n.mu.Lock()
	if n.known {
		j.session(n.id)
	}
	for id, k := range n.kept {
		select {
		case <-k.done:
			j.done(id, &effects{}, &k.answer)
		default: // it has been read, and waits for the end of this
		}
	}
	for id, w := range n.begun {
		w.write(j, id)
	}
	n.acked = nil
	n.mu.Unlock()
	j.send(message(journalWhole))
}

// witness is how things stood just before a change that can't be done twice: whoever finds only that it was begun compares.
type witness struct {
	there bool
	dev   uint64
	ino   uint64
	size  uint64 // of a file that grows
}

func (w witness) write(j *journal, request uint64) {
	e := message(journalBegin, request)
	e.Bool(w.there)
	e.U64(w.dev)
	e.U64(w.ino)
	e.U64(w.size)
	j.send(e)
}

func (w witness) same(x witness) bool {
	return w.there == x.there && w.dev == x.dev && w.ino == x.ino
}

// before notes how things stand, now; it gives how they stood when another server, which did not come to an end, had begun the same request.
func (s *Server) before(r *request, now witness) (was witness, again bool) {
	if r.begun != nil {
		return *r.begun, true
	}
	if s.tab.journal.on() {
		now.write(&s.tab.journal, r.id)
	}
	return now, false
}

// name looks at what has a name in a directory.
func nameNow(dir int, name string) witness {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return witness{}
	}
	return witness{there: true, dev: st.Dev, ino: st.Ino}
}

// made: the name did not exist when the request was begun, and exists: nobody but the client changes anything, so it was this request.
func (s *Server) made(r *request, dir int, name string) bool {
	now := nameNow(dir, name)
	was, again := s.before(r, now)
	return again && !was.there && now.there
}

// taken: the name was there when the request was begun, and is not, or is another's.
func (s *Server) taken(r *request, dir int, name string) bool {
	now := nameNow(dir, name)
	was, again := s.before(r, now)
	return again && was.there && !was.same(now)
}

// sizeBefore is the size of an open file when the request was begun, and now.
func (s *Server) sizeBefore(r *request, fd int) (was, now uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, 0, err
	}
	w, _ := s.before(r, witness{there: true, size: uint64(st.Size)})
	return w.size, uint64(st.Size), nil
}
