package wire

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const bufferSize = 128 << 10

// Buffer puts a buffer on each side of nc, to stand between TLS and a socket: TLS makes a system call of every record of
// 16 KB, and on a fast link each of them wakes the peer. What is written between the beginning and the end of a Send goes out at once;
// all else is passed on as it comes.
func Buffer(nc net.Conn) net.Conn { return &buffered{Conn: nc} }

// buffered is a net.Conn with buffers. One goroutine reads at a time, as TLS does it.
type buffered struct {
	net.Conn
	waits atomic.Bool // reads wait in their thread
	in    []byte      // what has been read and not asked for
	room  []byte      // where in lies

	mu     sync.Mutex // above writes: TLS may answer a key update while a Send is under way
	out    []byte
	corked bool
}

// NetConn is what is below, as tls.Conn calls it.
func (b *buffered) NetConn() net.Conn { return b.Conn }

func (b *buffered) Read(p []byte) (int, error) {
	if len(b.in) == 0 {
		if len(p) >= bufferSize {
			return b.read(p)
		}
		if b.room == nil {
			b.room = make([]byte, bufferSize)
		}
		n, err := b.read(b.room)
		if n == 0 {
			return 0, err
		}
		b.in = b.room[:n] // an error comes again
	}
	n := copy(p, b.in)
	b.in = b.in[n:]
	return n, nil
}

// read reads from the socket.
func (b *buffered) read(p []byte) (int, error) {
	if !b.waits.Load() {
		return b.Conn.Read(p)
	}
	s, ok := b.Conn.(syscall.Conn)
	if !ok {
		return b.Conn.Read(p)
	}
	c, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = c.Control(func(fd uintptr) { // Close waits for the end of it, having shut the socket down
		f := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(f, -1); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return 0, err
	}
	return b.Conn.Read(p)
}

// Close also wakes a reader that waits in its thread.
func (b *buffered) Close() error {
	if s, ok := b.Conn.(syscall.Conn); ok && b.waits.Load() {
		if c, err := s.SyscallConn(); err == nil {
			_ = c.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) }) // it may be closed already
		}
	}
	return b.Conn.Close()
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

// WaitInThread makes reads wait for the socket in the kernel, in the thread that calls, instead of in the runtime's poller,
// so that the thread's priority counts. Deadlines of reads have no effect then. It needs Buffer below.
func (c *Conn) WaitInThread() {
	if c.w != nil {
		c.w.waits.Store(true)
	}
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
