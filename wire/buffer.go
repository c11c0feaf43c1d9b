package wire

import (
	"net"
	"sync"
)

const bufferSize = 128 << 10

// Buffer puts a buffer on each side of nc, to stand between TLS and a socket: TLS makes a system call of every record of
// 16 KB, and on a fast link each of them wakes the peer. What is written between the beginning and the end of a Send goes out at once;
// all else is passed on as it comes.
func Buffer(nc net.Conn) net.Conn { return &buffered{below: below{Conn: nc}} }

// buffered is a net.Conn with buffers. One goroutine reads at a time, as TLS does it.
type buffered struct {
	below
	in   []byte // what has been read and not asked for
	room []byte // where in lies

	mu     sync.Mutex // above writes: TLS may answer a key update while a Send is under way
	out    []byte
	corked bool
}

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
