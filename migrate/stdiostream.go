package migrate

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	streamWindow = 1 << 20  // bytes that a sender keeps until they are acknowledged
	streamPiece  = 32 << 10 // bytes in one message
)

// outgoing is one direction of a stream at the side that reads it: what is read stays in bytes until the peer has passed it on.
// The end counts as one byte more, so that it is acknowledged like the bytes before it.
type outgoing struct {
	end    *streamEnd
	notify func() // there is something to send

	mu    sync.Mutex
	room  *sync.Cond // acked has grown, or done
	bytes streamBytes
	have  uint64 // bytes has them from acked to here
	acked uint64
	sent  uint64 // on the current connection
	eof   bool   // have is the last
	ended bool   // the end has been sent on the current connection
	done  bool   // all is acknowledged, or nobody wants more, or given up
	reset bool   // the peer wants no more: the other end is told
	given bool   // up, which a successor need not do
}

func newOutgoing(end *streamEnd, notify func()) *outgoing {
	o := &outgoing{end: end, notify: notify, bytes: &heldBytes{}}
	o.room = sync.NewCond(&o.mu)
	return o
}

// shortPause is how long a stream waits for memory.
const shortPause = 100 * time.Millisecond

// run reads until the end. When there is much nothing is read: whoever writes waits as it would at a full pipe.
func (o *outgoing) run() {
	defer o.finish()
	for o.hasRoom() {
		ev, err := o.end.wait(unix.POLLIN)
		if err != nil {
			return
		}
		if ev == 0 {
			continue
		}
		n, err := o.bytes.fill(o.end, o.have) // it is this goroutine's
		switch {
		case errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC):
			time.Sleep(shortPause) //nolint:forbidigo // nothing tells when there is memory
			continue
		case err != nil || n == 0: // ECONNRESET and the like: it is over
			return
		}
		o.mu.Lock()
		o.have += uint64(n)
		o.mu.Unlock()
		o.notify()
	}
}

func (o *outgoing) hasRoom() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.have-o.acked > streamWindow-streamPiece && !o.done && !o.eof {
		o.room.Wait()
	}
	return !o.done && !o.eof
}

func (o *outgoing) finish() {
	o.mu.Lock()
	o.eof = true
	if o.reset {
		o.end.shut(unix.SHUT_RD)
	}
	if !o.given {
		o.bytes.over(outEOF) // before the end is closed for all
	}
	o.mu.Unlock()
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
	if o.sent < o.have {
		n = o.bytes.read(p, o.sent, o.have)
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
	switch {
	case offset <= o.acked || o.done: // an old one
		return true
	case o.eof && offset == o.have+1:
		o.acked, o.done = o.have, true
		o.bytes.over(outDone)
	case offset > o.have:
		return false
	default:
		o.acked = offset
	}
	o.bytes.drop(o.acked)
	o.sent = max(o.sent, o.acked)
	o.room.Broadcast()
	return true
}

// stop ends it: the peer wants no more (reset), or all is given up.
func (o *outgoing) stop(reset bool) {
	o.mu.Lock()
	if reset {
		o.bytes.over(outDone)
	} else {
		o.given = true
	}
	o.done = true
	if o.acked = o.have; reset {
		o.bytes.drop(o.acked)
	}
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
	kept   *keptQueue // nil: it is written

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
			i.kept.over(inClosed) // before the end is closed for all
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
			p = p[:min(len(p), streamPiece)]
			if i.kept == nil {
				n, err = i.end.write(p)
			} else {
				n, err = i.kept.pass(i.end, p, i.written) // which is this goroutine's
			}
			if errors.Is(err, unix.EAGAIN) {
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
			i.kept.over(inRefused)
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
