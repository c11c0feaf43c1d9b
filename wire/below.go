package wire

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// below is the connection that frames, or TLS, go over: one that may be taken out of the runtime's poller while it is in use.
type below struct {
	net.Conn

	ending sync.Mutex // above Conn, which waitInThread changes; the reader, and who keeps writers out meanwhile, read it without
	ended  bool
}

// NetConn is what is below, as tls.Conn calls it.
func (b *below) NetConn() net.Conn {
	b.ending.Lock()
	defer b.ending.Unlock()
	return b.Conn
}

// SetWriteDeadline is what TLS calls before it says goodbye, whatever the reader does.
func (b *below) SetWriteDeadline(t time.Time) error { return b.NetConn().SetWriteDeadline(t) }

// Close wakes who waits. May be called more than once.
func (b *below) Close() error {
	b.ending.Lock()
	b.ended = true
	nc := b.Conn
	b.ending.Unlock()
	return nc.Close()
}

// writev writes the parts one after the other, in one system call if the kernel takes them all.
func (b *below) writev(parts net.Buffers) error {
	if t, ok := b.Conn.(*threaded); ok {
		return t.writev(parts)
	}
	_, err := parts.WriteTo(b.Conn)
	return err
}

// WaitInThread makes reads and writes wait for the socket in the kernel, in the thread that calls, instead of in the runtime's
// poller, so that the thread's priority counts. There are no deadlines then. The reader calls it, between two reads; it has
// an effect only on a clear lane, or with Buffer below, and TCP below that.
func (c *Conn) WaitInThread() error {
	if c.w != nil {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		return c.w.waitInThread()
	}
	if c.clear != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.clear.waitInThread()
	}
	return nil
}

// waitInThread is called while nobody writes.
func (b *below) waitInThread() error {
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
