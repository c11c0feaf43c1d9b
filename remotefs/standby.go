package remotefs

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// A Standby follows a server's journal in another process, so that its nodes, handles and answers outlive the server's: NewServerFrom goes on
// where it stopped. It is driven by one goroutine.
type Standby struct {
	cur   *standing // what is whole
	next  *standing // being written, after journalReset
	blind bool      // it gets no descriptors: they are opened later
}

// standing is one server's state.
type standing struct {
	nodes   map[uint64]*standNode
	handles map[uint64]*standHandle
	begun   map[uint64]witness
	kept    map[uint64]answer
	pieces  map[uint64][]byte // of answers that are not whole
	client  [wire.FileSessionSize]byte
	known   bool
	most    uint64 // highest ID of a node or handle that the server has named, also of those that are gone
}

type standNode struct {
	fd      int
	mode    uint32
	index   uint64
	hidden  bool
	lookups uint64 // of requests that are done
}

type standHandle struct {
	fd      int
	node    uint64
	dir     bool
	request uint64 // not done yet; 0: it is
}

func newStanding() *standing {
	return &standing{
		nodes: map[uint64]*standNode{}, handles: map[uint64]*standHandle{}, begun: map[uint64]witness{}, kept: map[uint64]answer{}, pieces: map[uint64][]byte{},
	}
}

func (t *standing) close() {
	if t == nil {
		return
	}
	for _, n := range t.nodes {
		_ = unix.Close(n.fd)
	}
	for _, h := range t.handles {
		_ = unix.Close(h.fd)
	}
}

// Close lets go of all descriptors.
func (s *Standby) Close() {
	s.cur.close()
	s.next.close()
	s.cur, s.next = nil, nil
}

// Whole says whether there is a server's state to go on with.
func (s *Standby) Whole() bool { return s.cur != nil }

var errJournal = errors.New("journal of files does not fit")

// Apply takes one message of a journal and its descriptor (-1: none), which is the standby's from then on.
func (s *Standby) Apply(b []byte, fd int) (err error) {
	d := wire.NewDecoder(b)
	kind := d.U8()
	took := false
	defer func() {
		if fd >= 0 && !took {
			_ = unix.Close(fd)
		}
		if err == nil {
			err = d.Err()
		}
		if err != nil {
			err = fmt.Errorf("journal message %d: %w", kind, err)
		}
	}()
	t := s.cur
	if s.next != nil {
		t = s.next
	}
	switch kind {
	case journalReset:
		s.next.close()
		s.next = newStanding()
		return nil
	case journalWhole:
		if s.next == nil {
			return errJournal
		}
		s.cur.close()
		s.cur, s.next = s.next, nil
		return nil
	}
	if t == nil {
		return errJournal
	}
	switch kind {
	case journalNode, journalHandle:
		if fd < 0 && !s.blind {
			return errJournal
		}
		took, err = t.addFD(kind, d, fd)
		return err
	case journalNamed, journalMoved: // for who has no descriptors
		_ = d.Rest()
		return nil
	}
	return t.apply(kind, d)
}

func (t *standing) addFD(kind uint8, d *wire.Decoder, fd int) (bool, error) {
	id := d.U64()
	if d.Err() != nil || t.nodes[id] != nil || t.handles[id] != nil {
		return false, errJournal
	}
	if kind == journalNode {
		n := &standNode{fd: fd, mode: d.U32(), index: d.U64(), hidden: d.Bool()}
		if d.End() != nil {
			return false, d.End()
		}
		t.nodes[id] = n
	} else {
		h := &standHandle{fd: fd, node: d.U64(), dir: d.Bool(), request: d.U64()}
		if d.End() != nil {
			return false, d.End()
		}
		t.handles[id] = h
	}
	if id&wire.FileOwnHandle == 0 {
		t.most = max(t.most, id)
	}
	return true, nil
}

func (t *standing) apply(kind uint8, d *wire.Decoder) error {
	switch kind {
	case journalSession:
		t.known = copy(t.client[:], d.Rest()) == len(t.client)
	case journalGone: // its handles may stay: only their release can follow
		id := d.U64()
		if n := t.nodes[id]; n != nil {
			_ = unix.Close(n.fd)
			delete(t.nodes, id)
		}
	case journalReleased:
		t.release(d.U64())
	case journalBegin:
		id := d.U64()
		t.begun[id] = witness{there: d.Bool(), dev: d.U64(), ino: d.U64(), size: d.U64()}
	case journalDone:
		id, last := d.U64(), d.Bool()
		t.pieces[id] = append(t.pieces[id], d.Rest()...)
		if last && d.Err() == nil {
			b := t.pieces[id]
			delete(t.pieces, id)
			return t.done(id, b)
		}
	case journalAcked:
		for range d.Count(8) {
			delete(t.kept, d.U64())
		}
	default:
		return errJournal
	}
	return d.Err()
}

func (t *standing) release(id uint64) {
	if h := t.handles[id]; h != nil {
		_ = unix.Close(h.fd)
		delete(t.handles, id)
	}
}

// done takes what a request has changed, and its answer.
func (t *standing) done(id uint64, b []byte) error {
	d := wire.NewDecoder(b)
	for range d.Count(8) {
		if n := t.nodes[d.U64()]; n != nil {
			n.lookups++
		}
	}
	for range d.Count(16) {
		node, count := d.U64(), d.U64()
		if n := t.nodes[node]; n != nil {
			n.lookups -= count
		}
	}
	for range d.Count(8) {
		if h := t.handles[d.U64()]; h != nil {
			h.request = 0
		}
	}
	a := answer{typ: wire.Type(d.U16()), head: d.Rest()}
	if d.Err() != nil {
		return d.Err()
	}
	delete(t.begun, id)
	if id != 0 {
		t.kept[id] = a
	}
	return nil
}

// Hand writes all that there is to another journal, for the process that goes on.
func (s *Standby) Hand(to Journal) error {
	t := s.cur
	if t == nil {
		return errJournal
	}
	j := &journal{to: to}
	j.send(message(journalReset))
	counts := map[uint64]uint64{}
	for id, n := range t.nodes {
		j.node(id, n.fd, n.mode, n.index, n.hidden)
		counts[id] = n.lookups
	}
	for id, h := range t.handles {
		j.handle(id, h.fd, h.node, h.dir, h.request)
	}
	j.done(0, countsOf(counts), &answer{})
	if t.known {
		j.session(t.client)
	}
	for id, w := range t.begun {
		w.write(j, id)
	}
	for id, a := range t.kept {
		j.done(id, &effects{}, &a)
	}
	j.send(message(journalWhole))
	if !j.on() {
		return errors.New("hand files over: the process that goes on is lost")
	}
	return nil
}

// NewServerFrom goes on with what another server has written down; changes are allowed. What it had begun for requests that it did not come to
// answer is taken back, or left as it was begun: the client asks again. The standby is empty afterwards.
func NewServerFrom(st *Standby, o ServerOptions) (*Server, error) {
	t := st.cur
	if t == nil || t.nodes[wire.FileRootNode] == nil {
		return nil, fmt.Errorf("go on with files: %w", errJournal)
	}
	st.cur = nil
	s, err := newServer(o)
	if err != nil {
		t.close()
		return nil, err
	}
	s.adopt(t)
	s.Grant()
	return s, nil
}

// adopt makes tables of what was handed over.
func (s *Server) adopt(t *standing) {
	for id, h := range t.handles {
		if h.request != 0 { // its number was never told
			t.release(id)
		}
	}
	tab := &s.tab
	tab.mu.Lock()
	defer tab.mu.Unlock()
	tab.next = t.most
	for id, n := range t.nodes {
		k, err := keyOf(n.fd)
		if err != nil {
			s.log.Error("look at a file that was handed over", "node", id, "err", err) // it is served, a new lookup makes another node
		}
		f := tab.devs[k.dev]
		if f == nil {
			f = &fsInfo{index: n.index, hidden: n.hidden}
			tab.devs[k.dev] = f
			tab.nextDev = max(tab.nextDev, n.index+1)
		}
		nd := &node{id: id, fd: n.fd, key: k, mode: n.mode, fs: f, lookups: n.lookups}
		tab.nodes[id] = nd
		if err == nil {
			tab.byKey[k] = nd
		}
	}
	for id, h := range t.handles {
		n := tab.nodes[h.node]
		if n == nil { // forgotten: only its release can follow
			n = &node{id: h.node, fd: -1, gone: true}
		}
		n.pins++
		hd := &handle{id: id, fd: h.fd, node: n, ready: make(chan struct{})}
		close(hd.ready)
		if h.dir {
			hd.dir = &dirState{next: math.MaxUint64} // where the descriptor stands is not known
		}
		tab.handles[id] = hd
	}
	for _, n := range tab.nodes {
		tab.reap(n) // of requests that were not answered
	}
	q := &s.sess
	q.known, q.id, q.begun, q.kept = t.known, t.client, t.begun, map[uint64]*keptAnswer{}
	for id, a := range t.kept {
		q.kept[id] = &keptAnswer{done: make(chan struct{})}
		q.settle(id, q.kept[id], a)
	}
}
