package wire

import (
	"fmt"
	"net"
	"sync"
	"time"
)

const bufferSize = 128 << 10

// Buffer puts a buffer on each side of nc, to stand between TLS and a socket: TLS makes a system call of every record of
// 16 KB, and on a fast link each of them wakes the peer. What is written between the beginning and the end of a Send goes out at once;
// all else is passed on as it comes.
func Buffer(nc net.Conn) net.Conn { return &buffered{Conn: nc} }

// buffered is a net.Conn with buffers. One goroutine reads at a time, as TLS does it.
type buffered struct {
	net.Conn
	in   []byte // what has been read and not asked for
	room []byte // where in lies

	ending sync.Mutex // above Conn, which waitInThread changes; the reader, and who holds mu, read it without
	ended  bool

	mu     sync.Mutex // above writes: TLS may answer a key update while a Send is under way
	out    []byte
	corked bool
}

// NetConn is what is below, as tls.Conn calls it.
func (b *buffered) NetConn() net.Conn {
	b.ending.Lock()
	defer b.ending.Unlock()
	return b.Conn
}

// SetWriteDeadline is what TLS calls before it says goodbye, whatever the reader does.
func (b *buffered) SetWriteDeadline(t time.Time) error { return b.NetConn().SetWriteDeadline(t) }

func (b *buffered) Read(p []byte) (int, error) {
	if len(b.in) == 0 {
		if len(p) >= bufferSize {
			return b.Conn.Read(p)
		}
		if b.room == nil {
			b.room = make([]byte, bufferSize)
		}
		n, err := b.Conn.Read(b.room)
		if n == 0 {
			return 0, err
		}
		b.in = b.room[:n] // an error comes again
	}
	n := copy(p, b.in)
	b.in = b.in[n:]
	return n, nil
}

// Close wakes who waits. May be called more than once.
func (b *buffered) Close() error {
	b.ending.Lock()
	b.ended = true
	nc := b.Conn
	b.ending.Unlock()
	return nc.Close()
}

func (b *buffered) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.corked {
		return b.Conn.Write(p)
	}
	if len(b.out)+len(p) > bufferSize {
		if err := b.flush(); err != nil {
			return 0, err
		}
	}
	b.out = append(b.out, p...)
	return len(p), nil
}

// flush is called with mu held.
func (b *buffered) flush() error {
	if len(b.out) == 0 {
		return nil
	}
	_, err := b.Conn.Write(b.out)
	b.out = b.out[:0]
	return err
}

func (b *buffered) cork() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.corked = true
}

func (b *buffered) uncork() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.corked = false
	return b.flush()
}

// WaitInThread makes reads and writes wait for the socket in the kernel, in the thread that calls, instead of in the runtime's
// poller, so that the thread's priority counts. There are no deadlines then. The reader calls it, between two reads; it has
// an effect only with Buffer below and TCP below that.
func (c *Conn) WaitInThread() error {
	if c.w == nil {
		return nil
	}
	return c.w.waitInThread()
}

func (b *buffered) waitInThread() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ending.Lock()
	defer b.ending.Unlock()
	nc, ok := b.Conn.(*net.TCPConn)
	if !ok || b.ended {
		return nil
	}
	t, err := newThreaded(nc)
	if err != nil {
		return fmt.Errorf("take connection out of the poller: %w", err)
	}
	b.Conn = t
	return nil
}

// bufferBelow finds the buffer that TLS writes to; nil if there is none.
func bufferBelow(nc net.Conn) *buffered {
	for {
		switch c := nc.(type) {
		case *buffered:
			return c
		case interface{ NetConn() net.Conn }:
			nc = c.NetConn()
		default:
			return nil
		}
	}
}
