package remotefs

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// maxUnanswered is how many requests a Client has under way. The server remembers at most wire.MaxFileAcks answers, which is enough: of
// the answers whose acknowledgement is lost with a connection, each belongs to a request that was under way with the others.
const maxUnanswered = 256

// session is what the server knows of its one client beyond a connection: the answers to requests that may be done only once.
type session struct {
	mu    sync.Mutex
	id    [wire.FileSessionSize]byte
	known bool
	cur   *serverLink // the newest connection: only its requests are begun
	kept  map[uint64]*keptAnswer
	begun map[uint64]witness // requests that the server before this one began
	acked []uint64           // to be written to the journal with the next answer
}

// serverLink is one connection.
type serverLink struct {
	c    *wire.Conn
	once sync.Once
	gone chan struct{} // closed by end
}

// end ends the connection; what it has begun is finished.
func (l *serverLink) end() {
	l.once.Do(func() {
		close(l.gone)
		hangUp(l.c)
	})
}

func (l *serverLink) isGone() bool {
	select {
	case <-l.gone:
		return true
	default:
		return false
	}
}

// answer is a reply, or what ends the connection instead.
type answer struct {
	typ        wire.Type
	head, rest []byte
	err        error
}

func (a *answer) send(c *wire.Conn, id uint64) error {
	if a.err != nil {
		return a.err
	}
	return c.Send(a.typ, 0, id, a.head, a.rest)
}

// keptAnswer is there from the beginning of a request until the client says that it has the answer.
type keptAnswer struct {
	answer
	done     chan struct{} // the answer is there
	unwanted bool          // it is acknowledged before it is there: by the successor of a client that died
}

// settle is the end of a request that may be done only once.
func (n *session) settle(id uint64, k *keptAnswer, a answer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k.answer = a
	close(k.done)
	if k.unwanted {
		delete(n.kept, id)
		n.acked = append(n.acked, id)
	}
}

// job is one request that has been read.
type job struct {
	link  *serverLink
	h     wire.Header
	d     *wire.Decoder
	op    op
	kept  *keptAnswer // of an operation that is done once
	again bool        // somebody else settles kept
	begun *witness

	opening *handle // own, that the request opens or uses; nil: there is none
	mine    bool    // the request opens it

	after <-chan struct{} // what has to be done before; nil: nothing
}

// attach reads who the peer is and makes its connection the current one.
func (s *Server) attach(l *serverLink) error {
	h, err := l.c.ReadHeader()
	if err != nil {
		return fmt.Errorf("read introduction: %w", err)
	}
	if h.Type != wire.MsgFileAttach || h.Length != wire.FileSessionSize {
		return fmt.Errorf("message %d of %d bytes instead of an introduction: %w", h.Type, h.Length, errProtocol)
	}
	var id [wire.FileSessionSize]byte
	if err := l.c.ReadFull(id[:]); err != nil {
		return fmt.Errorf("read introduction: %w", err)
	}
	n := &s.sess
	n.mu.Lock()
	if n.known && n.id != id {
		n.mu.Unlock()
		err := fmt.Errorf("these files have another client: %w", unix.EBUSY)
		_ = l.c.Send(wire.MsgError, 0, h.ID, wire.MarshalError(err)) // the connection ends either way
		return err
	}
	if !n.known {
		n.known, n.id, n.kept = true, id, map[uint64]*keptAnswer{}
		s.tab.journal.session(id)
	}
	old := n.cur
	n.cur = l
	kept := make([]byte, 0, 8*len(n.kept))
	for id := range n.kept {
		kept = binary.BigEndian.AppendUint64(kept, id)
	}
	n.mu.Unlock()
	if old != nil {
		old.end()
	}
	if err := l.c.Send(wire.MsgFileAttach+1, 0, h.ID, kept); err != nil {
		return fmt.Errorf("answer introduction: %w", err)
	}
	return nil
}

// take accepts a request, in the order in which they come: what it acknowledges is forgotten, and if it may be done only once it is
// written down before it begins. A request of a connection that has been replaced is not begun: it comes again, or has done so, and
// its answer may be forgotten already. Its place in the chain is given at once, too: else the next connection could be faster, and the request come to wait for what waits for it.
func (s *Server) take(l *serverLink, h wire.Header, p []byte) (*job, error) {
	j := &job{link: l, h: h, d: wire.NewDecoder(p)}
	if h.Type == wire.MsgPing {
		return j, nil
	}
	n := &s.sess
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cur != l {
		return nil, fmt.Errorf("connection has been replaced")
	}
	if err := s.takeLocked(j); err != nil {
		return nil, err
	}
	s.chain.order(j)
	return j, nil
}

// takeLocked is take with session.mu.
func (s *Server) takeLocked(j *job) error {
	n := &s.sess
	acks := int(j.d.U16())
	if acks > wire.MaxFileAcks {
		return fmt.Errorf("%d acknowledgements: %w", acks, errProtocol)
	}
	for range acks {
		id := j.d.U64()
		if k := n.kept[id]; k != nil {
			select {
			case <-k.done:
				delete(n.kept, id)
				n.acked = append(n.acked, id)
			default:
				k.unwanted = true
			}
		}
	}
	if err := j.d.Err(); err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	j.op = ops[j.h.Type]
	if !j.op.once {
		s.tab.journal.acked(n.acked) // its answer is not written down, and no request says this again once that has come
		n.acked = nil
		return nil
	}
	if j.kept = n.asked(j.h.ID); j.kept != nil {
		j.again = true
		return nil
	}
	if len(n.kept) >= wire.MaxFileAcks {
		return fmt.Errorf("%d answers are not acknowledged: %w", len(n.kept), errProtocol)
	}
	j.kept = &keptAnswer{done: make(chan struct{})}
	n.kept[j.h.ID] = j.kept
	if w, ok := n.begun[j.h.ID]; ok {
		j.begun = &w
	}
	return nil
}

// settle keeps the answer, first where it outlives this process.
func (s *Server) settle(j *job, r *request, a answer) {
	n := &s.sess
	n.mu.Lock()
	acked := n.acked
	n.acked = nil
	delete(n.begun, j.h.ID)
	n.mu.Unlock()
	s.tab.journal.acked(acked)
	s.tab.journal.done(j.h.ID, &r.effects, &a)
	n.settle(j.h.ID, j.kept, a)
}
