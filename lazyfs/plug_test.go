package lazyfs

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// plug joins client and server by connections that end: when told so, or after some bytes.
type plug struct {
	server *remotefs.Server
	cuts   uint64
	wg     sync.WaitGroup
	client *remotefs.Client // once ready is closed
	ready  chan struct{}

	mu   sync.Mutex
	cur  net.Conn
	away bool
	n    uint64 // connections so far
}

// connect makes a connection and serves it.
func (p *plug) connect() (*wire.Conn, error) {
	a, b, err := socketPair()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.n++
	p.cur = b
	n := p.n
	p.mu.Unlock()
	if p.cuts != 0 {
		r := rand.New(rand.NewPCG(p.cuts, n))
		a = &shortConn{Conn: a, left: 1 << (7 + r.IntN(10)) * (16 + r.IntN(16)) / 16}
	}
	p.wg.Go(func() { _ = p.server.Serve(context.Background(), wire.NewConn(a)) }) // how it ends is what the client sees
	return wire.NewConn(b), nil
}

// lost is the client's.
func (p *plug) lost(error) {
	p.mu.Lock()
	away := p.away
	p.mu.Unlock()
	if !away {
		_ = p.plug() // fails at the end
	}
}

func (p *plug) plug() error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.away = false
	p.mu.Unlock()
	<-p.ready
	return p.client.Attach(c)
}

func (p *plug) unplug() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = true
	_ = p.cur.Close()
}

func (p *plug) count() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n - 1
}

// shortConn ends in the middle of whatever is under way when left bytes have gone through it.
type shortConn struct {
	net.Conn
	mu   sync.Mutex
	left int
}

// take tells how many of n bytes may still go.
func (c *shortConn) take(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, c.left)
	c.left -= n
	return n
}

func (c *shortConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		return n, err
	}
	if ok := c.take(n); ok < n {
		_ = c.Close()
		return ok, io.ErrUnexpectedEOF
	}
	return n, nil
}

func (c *shortConn) Write(b []byte) (int, error) {
	ok := c.take(len(b))
	n, err := c.Conn.Write(b[:ok])
	if err == nil && ok < len(b) {
		_ = c.Close()
		return n, os.ErrClosed
	}
	return n, err
}
