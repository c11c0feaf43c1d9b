package migrate

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	streamWindow = 1 << 20  // bytes that a sender keeps until they are acknowledged
	streamPiece  = 32 << 10 // bytes in one message
)

// outgoing is one direction of a stream at the side that reads it: what is read stays in buf until the peer has passed it on.
// The end counts as one byte more, so that it is acknowledged like the bytes before it.
type outgoing struct {
	end    *streamEnd
	notify func() // there is something to send

	mu    sync.Mutex
	room  *sync.Cond // buf became shorter, or done
	buf   []byte     // from acked on
	acked uint64
	sent  uint64 // on the current connection
	eof   bool   // buf holds the last bytes
	ended bool   // the end has been sent on the current connection
	done  bool   // all is acknowledged, or nobody wants more, or given up
	reset bool   // the peer wants no more: the other end is told
}

func newOutgoing(end *streamEnd, notify func()) *outgoing {
	o := &outgoing{end: end, notify: notify}
	o.room = sync.NewCond(&o.mu)
	return o
}

// run reads until the end. When buf is full nothing is read: whoever writes waits as it would at a full pipe.
func (o *outgoing) run() {
	defer o.finish()
	p := make([]byte, streamPiece)
	for o.hasRoom() {
		ev, err := o.end.wait(unix.POLLIN)
		if err != nil {
			return
		}
		if ev == 0 {
			continue
		}
		n, err := o.end.read(p)
		switch {
		case errors.Is(err, unix.EAGAIN):
			continue
		case err != nil || n == 0: // ECONNRESET and the like: it is over
			return
		}
		o.mu.Lock()
		o.buf = append(o.buf, p[:n]...)
		o.mu.Unlock()
		o.notify()
	}
}

func (o *outgoing) hasRoom() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.buf) > streamWindow-streamPiece && !o.done {
		o.room.Wait()
	}
	return !o.done
}

func (o *outgoing) finish() {
	o.mu.Lock()
	o.eof = true
	reset := o.reset
	o.mu.Unlock()
	if reset {
		o.end.shut(unix.SHUT_RD)
	}
	o.end.close()
	o.notify()
}

// next is what to send now: bytes (copied to p) with their offset, or the end.
func (o *outgoing) next(p []byte) (n int, offset uint64, end bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done {
		return 0, 0, false
	}
	if have := o.acked + uint64(len(o.buf)); o.sent < have {
		n = copy(p, o.buf[o.sent-o.acked:])
		offset = o.sent
		o.sent += uint64(n)
		return n, offset, false
	}
	if o.eof && !o.ended {
		o.ended = true
		return 0, o.sent, true
	}
	return 0, 0, false
}

// again is called for a new connection: what has not been acknowledged is sent once more.
func (o *outgoing) again() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sent, o.ended = o.acked, false
}

// ack handles the peer's word that it has passed on everything before offset; false: it can't have.
func (o *outgoing) ack(offset uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	have := o.acked + uint64(len(o.buf))
	switch {
	case offset <= o.acked || o.done: // an old one
		return true
	case o.eof && offset == have+1:
		o.buf, o.acked, o.done = nil, have, true
	case offset > have:
		return false
	default:
		o.buf = o.buf[offset-o.acked:]
		o.acked = offset
	}
	o.sent = max(o.sent, o.acked)
	o.room.Broadcast()
	return true
}

// stop ends it: the peer wants no more (reset), or all is given up.
func (o *outgoing) stop(reset bool) {
	o.mu.Lock()
	o.done, o.buf = true, nil
	o.reset = o.reset || reset
	o.room.Broadcast()
	o.mu.Unlock()
	o.end.wake()
}

func (o *outgoing) idle() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.done
}

// incoming is one direction of a stream at the side that writes it. What has been written is acknowledged; what arrives twice is dropped.
type incoming struct {
	end    *streamEnd
	notify func()

	mu      sync.Mutex
	buf     []byte // from written on
	written uint64
	eof     bool // buf holds the last bytes
	closed  bool // the end has been passed on
	refused bool // nobody reads it any more
	stopped bool // given up
	ackDue  bool
	endDue  bool // refused is to be told
}

func newIncoming(end *streamEnd, notify func()) *incoming { return &incoming{end: end, notify: notify} }

// take accepts bytes of the peer; false: they leave a gap, or are more than was allowed.
func (i *incoming) take(offset uint64, p []byte) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.refused || i.stopped {
		return true // not wanted; and buf was dropped, so that where the next bytes begin is not known any more
	}
	have := i.written + uint64(len(i.buf))
	if offset > have {
		return false
	}
	if i.eof || offset+uint64(len(p)) <= have {
		return true // here already
	}
	p = p[have-offset:]
	if len(i.buf)+len(p) > streamWindow {
		return false
	}
	i.buf = append(i.buf, p...)
	i.end.wake()
	return true
}

// takeEnd is the peer's word that its bytes end at offset.
func (i *incoming) takeEnd(offset uint64) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.refused || i.stopped {
		return true
	}
	if offset != i.written+uint64(len(i.buf)) {
		return false
	}
	i.eof = true
	i.end.wake()
	return true
}

// run writes until the end, or until nobody reads.
func (i *incoming) run() {
	defer i.end.close()
	for {
		i.mu.Lock()
		p, eof, stopped := i.buf, i.eof, i.stopped
		if eof && len(p) == 0 && !stopped {
			i.closed, i.ackDue = true, true
			i.end.shut(unix.SHUT_WR)
		}
		i.mu.Unlock()
		if stopped || eof && len(p) == 0 {
			i.end.close() // before the peer is told
			i.notify()
			return
		}
		var want int16
		if len(p) > 0 {
			want = unix.POLLOUT
		}
		ev, err := i.end.wait(want)
		if err == nil && ev == 0 {
			continue
		}
		n := 0
		if err == nil && len(p) > 0 && ev&(unix.POLLERR|unix.POLLNVAL) == 0 {
			if n, err = i.end.write(p[:min(len(p), streamPiece)]); errors.Is(err, unix.EAGAIN) {
				continue
			}
		} else if err == nil {
			err = unix.EPIPE // whoever read is gone
		}
		i.mu.Lock()
		i.buf = i.buf[n:]
		i.written += uint64(n)
		i.ackDue = i.ackDue || n > 0
		if err != nil {
			i.refused, i.endDue, i.buf = true, true, nil
		}
		i.mu.Unlock()
		i.notify()
		if err != nil {
			return
		}
	}
}

// next is what to tell the peer now: an acknowledgement, or that nobody reads.
func (i *incoming) next() (offset uint64, ack, end bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.endDue:
		i.endDue = false
		return i.written, false, true
	case i.ackDue:
		i.ackDue = false
		offset = i.written
		if i.closed {
			offset++
		}
		return offset, true, false
	}
	return 0, false, false
}

func (i *incoming) again() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ackDue = i.written > 0 || i.closed
	i.endDue = i.refused
}

// stop gives up.
func (i *incoming) stop() {
	i.mu.Lock()
	i.stopped = true
	i.mu.Unlock()
	i.end.wake()
}
