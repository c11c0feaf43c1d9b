package remotefs

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// A client may name a handle itself, and use it without waiting until it is open. Requests are worked at side by side, so the order on the lane is kept here: when
// MsgFileOpenAs has been read, and before the next request is, the handle is in the table; what uses it then waits until it is open.

// order notes, in the order of requests, which handle of the client's own one is about.
func (s *Server) order(j *job) {
	if !j.op.handle || j.again {
		return
	}
	d := *j.d // the request is read again
	node := d.U64()
	d.U32()
	d.U32()
	id := d.U64()
	if d.Err() != nil || id&wire.FileOwnHandle == 0 {
		return
	}
	if j.h.Type == wire.MsgFileOpenAs {
		j.opening, j.mine = s.tab.reserve(node, id)
	} else {
		j.opening = s.tab.find(id)
	}
}

// awaitOpened holds up what uses a handle that is being opened; false: the connection has ended. It holds no lock: who opens may wait for s.quiet.
func (s *Server) awaitOpened(j *job) bool {
	if j.opening == nil || j.mine {
		return true
	}
	if j.kept != nil { // who asks again waits for this one
		<-j.opening.ready
		return true
	}
	select {
	case <-j.opening.ready:
		return true
	case <-j.link.gone: // it comes again
		return false
	}
}

// opOpenAs: handle, flags, directory →
func (s *Server) opOpenAs(r *request) error {
	id, flags, dir := r.d.U64(), int(r.d.U32()), r.d.Bool()
	err := r.end()
	h := r.opening
	switch {
	case h == nil && err != nil:
		return err
	case h == nil:
		return fmt.Errorf("handle %x: %w", id, unix.ESTALE)
	case !r.mine: // a client before this one has opened it
		return h.err
	}
	fd := -1
	r.node = h.node
	switch {
	case err != nil:
	case flags&unix.O_ACCMODE != unix.O_RDONLY:
		err = unix.EINVAL
	case dir:
		fd, err = s.openDir(r)
	default:
		fd, err = s.openFile(r, flags)
	}
	s.tab.opened(h, fd, err, dir, r)
	if err == nil && !dir {
		s.countFile(h.node)
	}
	return err
}

// reserve puts a handle into the table that is yet to be opened; false: it is there already. Nil: it can't be.
func (t *table) reserve(node, id uint64) (*handle, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[node]
	if h := t.handles[id]; h != nil {
		if h.node != n {
			return nil, false
		}
		return h, false
	}
	if n == nil {
		return nil, false
	}
	n.pins++
	h := &handle{id: id, node: n, fd: -1, ready: make(chan struct{}), pins: 1}
	t.handles[id] = h
	return h, true
}

// find gives a handle that is in the table, open or not.
func (t *table) find(id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.handles[id]
}

// opened ends a reservation: fd, which the handle takes over, or why there is none.
func (t *table) opened(h *handle, fd int, err error, dir bool, r *request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(h.ready)
	h.fd, h.err = fd, err
	if dir {
		h.dir = &dirState{}
	}
	if err == nil && !h.gone {
		t.journal.handle(h.id, fd, h.node.id, dir, r.id)
		r.effects.opened = append(r.effects.opened, h.id)
	}
	h.pins--
	t.reapHandle(h)
}
