package migrate

import (
	"errors"
	"fmt"
	"sync"

	"github.com/lazymig/lazymig/wire"
)

// relay carries the bytes of standard streams between the tree on the target and whoever has the other ends on the source, over
// the control connection and the connections that follow it: each byte once and in order.
//
//	tree ─ pipe ─► outgoing ── MsgStream ─────────────► incoming ─ pipe ─► reader on the source
//	                   ◄────── MsgStreamAck (written) ─────
//
// and the other way for standard input; a socket is both. Who reads keeps what has not been acknowledged, at most streamWindow bytes, and
// sends it again on the next connection; who writes drops what it has already. So the source's reader that does not read makes
// the tree wait, and MsgStreamEnd tells an end of file, or that nobody reads any more, to the other side.
//
// Lock order: relay.mu, then a stream's mu, then its end's.
type relay struct {
	out map[uint32]*outgoing
	in  map[uint32]*incoming

	wake chan struct{} // there may be something to send
	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu   sync.Mutex
	sess streamConn // nil: no connection
	idle chan struct{}
}

func newRelay() *relay {
	return &relay{out: map[uint32]*outgoing{}, in: map[uint32]*incoming{}, wake: make(chan struct{}, 1), quit: make(chan struct{}), idle: make(chan struct{}, 1)}
}

func (r *relay) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// addOut adds a stream that is read here. Before start only.
func (r *relay) addOut(n uint32, e *streamEnd) { r.out[n] = newOutgoing(e, r.notify) }

// addIn adds a stream that is written here. Before start only.
func (r *relay) addIn(n uint32, e *streamEnd) { r.in[n] = newIncoming(e, r.notify) }

// start begins to read and write. A nil relay has nothing to do.
func (r *relay) start() {
	if r == nil {
		return
	}
	for _, o := range r.out {
		r.wg.Go(o.run)
	}
	for _, i := range r.in {
		r.wg.Go(i.run)
	}
	r.wg.Go(r.send)
}

// attach goes on with another connection; nil: there is none.
func (r *relay) attach(s streamConn) {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.sess = s
	for _, o := range r.out {
		o.again()
	}
	for _, i := range r.in {
		i.again()
	}
	r.mu.Unlock()
	r.notify()
}

// send is the one goroutine that sends; nobody else waits for the connection.
func (r *relay) send() {
	p := make([]byte, streamPiece)
	for {
		select {
		case <-r.wake:
		case <-r.quit:
			return
		}
		for r.sendOne(p) {
		}
		if r.allSent() {
			select {
			case r.idle <- struct{}{}:
			default:
			}
		}
	}
}

// sendOne sends what each stream has next; false: nothing, or there is no connection.
func (r *relay) sendOne(p []byte) bool {
	r.mu.Lock()
	s := r.sess
	r.mu.Unlock()
	if s == nil {
		return false
	}
	sent := false
	for n, i := range r.in {
		var offset uint64
		var ack, end bool
		if !r.still(s, func() { offset, ack, end = i.next() }) {
			return true
		}
		var err error
		switch {
		case end:
			err = s.sendStream(wire.MsgStreamEnd, n, offset, []byte{streamRefused})
		case ack:
			err = s.sendStream(wire.MsgStreamAck, n, offset, nil)
		}
		if err != nil {
			return r.lost(s)
		}
		sent = sent || end || ack
	}
	for n, o := range r.out {
		var size int
		var offset uint64
		var end bool
		if !r.still(s, func() { size, offset, end = o.next(p) }) {
			return true
		}
		var err error
		switch {
		case end:
			err = s.sendStream(wire.MsgStreamEnd, n, offset, []byte{streamEOF})
		case size > 0:
			err = s.sendStream(wire.MsgStream, n, offset, p[:size])
		}
		if err != nil {
			return r.lost(s)
		}
		sent = sent || end || size > 0
	}
	return sent
}

// still calls f unless another connection has been attached: what f takes for the old one would be missing on the new one.
func (r *relay) still(s streamConn, f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sess != s {
		return false
	}
	f()
	return true
}

// lost forgets a connection; all that it may have lost is sent again on the next.
func (r *relay) lost(s streamConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sess == s {
		r.sess = nil
	}
	return r.sess != nil
}

// What MsgStreamEnd says.
const (
	streamEOF     = 1 // no more bytes come
	streamRefused = 2 // no more bytes are wanted
)

// take handles a message about a stream. It never waits, and is called by a connection's reader.
func (r *relay) take(t wire.Type, p []byte) error {
	if r == nil {
		return errors.New("message about a stream: there is none")
	}
	d := wire.NewDecoder(p)
	n, offset := d.U32(), d.U64()
	ok := true
	switch t {
	case wire.MsgStream:
		b := d.Rest()
		if i := r.in[n]; i == nil {
			ok = false
		} else {
			ok = d.Err() == nil && i.take(offset, b)
		}
	case wire.MsgStreamAck:
		if o := r.out[n]; o == nil || d.End() != nil {
			ok = false
		} else if ok = o.ack(offset); ok {
			r.notify()
		}
	case wire.MsgStreamEnd:
		what := d.U8()
		switch i, o := r.in[n], r.out[n]; {
		case d.End() != nil:
			ok = false
		case what == streamEOF && i != nil:
			ok = i.takeEnd(offset)
		case what == streamRefused && o != nil:
			o.stop(true)
			r.notify()
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("stream %d: message %d (offset %d, %d bytes) does not fit", n, t, offset, len(p))
	}
	return nil
}

// allSent: nothing that was read here waits for the peer, and nothing will come.
func (r *relay) allSent() bool {
	if r == nil {
		return true
	}
	for _, o := range r.out {
		if !o.idle() {
			return false
		}
	}
	return true
}

// pending is how many bytes the peer has not passed on.
func (r *relay) pending() int {
	n := 0
	for _, o := range r.out {
		o.mu.Lock()
		n += int(o.have - o.acked)
		o.mu.Unlock()
	}
	return n
}

// close gives up what is left and waits for all goroutines. May be called more than once, also without start.
func (r *relay) close() {
	if r == nil {
		return
	}
	r.attach(nil)
	r.once.Do(func() { close(r.quit) })
	for _, o := range r.out {
		o.stop(false)
	}
	for _, i := range r.in {
		i.stop()
	}
	r.wg.Wait()
	for _, o := range r.out {
		o.end.close() // if it was never started
	}
	for _, i := range r.in {
		i.end.close()
	}
}
