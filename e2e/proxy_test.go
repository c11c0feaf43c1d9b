package e2e

import (
	"net"
	"sync"
	"testing"
	"time"
)

// proxy is a network between source and agent that does as it is told: the source dials it in A's network namespace, and it dials the agent from there.
type proxy struct {
	r  *rig
	ln net.Listener
	wg sync.WaitGroup

	mu      sync.Mutex
	change  *sync.Cond
	pairs   map[*pair]bool
	waiting []net.Conn // while held
	held    bool       // new connections wait
	stalled bool       // nothing is passed on
	closed  bool
	lost    int // chunks
	passed  int // chunks
	stood   int // chunks that came while it was stalled
}

// pair is one connection through the proxy: [0] is the source's, [1] the agent's.
type pair struct {
	ends [2]*net.TCPConn
	lose [2]bool // what comes from this end is thrown away
	said [2]bool // something has been passed on from this end
	keep bool    // what comes from the source is kept, to come late
	kept []byte
}

const proxyPort = "7071"

// newProxy makes one; closed at the end of the test.
func newProxy(r *rig) *proxy {
	r.t.Helper()
	p := &proxy{r: r, pairs: map[*pair]bool{}}
	p.change = sync.NewCond(&p.mu)
	if err := inNet(r.l.A, func() (err error) {
		p.ln, err = net.Listen("tcp4", r.l.A.Addr+":"+proxyPort)
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	p.wg.Go(p.accept)
	r.t.Cleanup(p.close)
	return p
}

func (p *proxy) addr() string { return p.r.l.A.Addr + ":" + proxyPort }

func (p *proxy) close() {
	p.ln.Close()
	p.mu.Lock()
	p.closed = true
	p.change.Broadcast()
	for _, c := range p.waiting {
		c.Close()
	}
	for c := range p.pairs {
		c.reset(0, 1)
	}
	p.mu.Unlock()
	p.wg.Wait()
}

func (p *proxy) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.held {
			p.waiting = append(p.waiting, c)
			p.change.Broadcast()
		} else {
			p.wg.Go(func() { p.connect(c.(*net.TCPConn)) })
		}
		p.mu.Unlock()
	}
}

// connect joins a connection of the source with the agent, and passes on until one of them ends.
func (p *proxy) connect(a *net.TCPConn) {
	var b net.Conn
	if err := inNet(p.r.l.A, func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		b, err = d.Dial("tcp4", p.r.l.B.Addr+":"+agentPort)
		return err
	}); err != nil {
		_ = a.SetLinger(0)
		a.Close()
		return
	}
	c := &pair{ends: [2]*net.TCPConn{a, b.(*net.TCPConn)}}
	p.mu.Lock()
	p.pairs[c] = true
	closed := p.closed
	p.mu.Unlock()
	if closed {
		c.reset(0, 1)
	}
	var both sync.WaitGroup
	both.Go(func() { p.pass(c, 0) })
	both.Go(func() { p.pass(c, 1) })
	both.Wait()
	c.reset(0, 1)
	p.mu.Lock()
	delete(p.pairs, c)
	p.mu.Unlock()
}

// pass passes on what comes from one end.
func (p *proxy) pass(c *pair, from int) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.ends[from].Read(buf)
		p.mu.Lock()
		if p.stalled && n > 0 {
			p.stood++
		}
		for p.stalled && !p.closed {
			p.change.Wait()
		}
		keep := c.keep && from == 0
		lose := c.lose[from] || keep
		switch {
		case n <= 0:
		case keep:
			c.kept = append(c.kept, buf[:n]...)
			p.lost++
		case lose:
			p.lost++
		default:
			p.passed++
		}
		c.said[from] = c.said[from] || n > 0
		p.change.Broadcast()
		p.mu.Unlock()
		if lose {
			n = 0
		}
		if n > 0 {
			if _, werr := c.ends[1-from].Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			if !lose { // else the end is lost, too
				c.reset(0, 1)
			}
			return
		}
	}
}

// reset ends one or both by a RST.
func (c *pair) reset(which ...int) {
	for _, i := range which {
		_ = c.ends[i].SetLinger(0) // closed already: nothing to do
		c.ends[i].Close()
	}
}

func (p *proxy) all() (all []*pair) {
	for c := range p.pairs {
		all = append(all, c)
	}
	return all
}

// stall passes nothing on from now on, and neither side is told; goOn passes on what has gathered.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = true
}

func (p *proxy) goOn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = false
	p.change.Broadcast()
}

// loseFrom throws away what comes from one end of the connections that there are; loseEnd resets them when several messages are lost.
func (p *proxy) loseFrom(end int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.lose[end] = true
	}
	p.lost = 0
}

func (p *proxy) loseEnd(enough int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost < enough && len(p.pairs) > 0 {
		return false
	}
	for c := range p.pairs {
		c.reset(0, 1)
	}
	return true
}

// talk says, when it is called again, whether the sides have said some more to each other: a clock that goes as they do, since they ping.
func (p *proxy) talk() func() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	const enough = 30 // some seconds
	from := p.passed
	return func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.passed-from >= enough
	}
}

// TestProxy: what the faults need of it.
func TestProxy(t *testing.T) {
	r := newHosts(t)
	p := newProxy(r)
	var b net.Listener
	if err := inNet(r.l.B, func() (err error) {
		b, err = net.Listen("tcp4", r.l.B.Addr+":"+agentPort)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	join := func() (from, to net.Conn) {
		t.Helper()
		if err := inNet(r.l.A, func() (err error) { from, err = net.Dial("tcp4", p.addr()); return err }); err != nil {
			t.Fatal(err)
		}
		to, err := b.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { from.Close(); to.Close() })
		return from, to
	}
	send := func(from, to net.Conn, word string) {
		t.Helper()
		got := make([]byte, len(word))
		if _, err := from.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Read(got); err != nil || string(got) != word {
			t.Fatalf("read %q, %v", got, err)
		}
	}
	from, to := join()
	send(from, to, "there")
	send(to, from, "back")
	p.loseFrom(0)
	_, _ = from.Write([]byte("lost"))
	r.eventually("loss", func() bool { return p.loseEnd(1) })
	if _, err := to.Read(make([]byte, 8)); err == nil {
		t.Error("what was lost has come")
	}
	from, to = join()
	send(from, to, "there")
	end := p.late()
	if _, err := from.Read(make([]byte, 8)); err == nil {
		t.Error("the source's end is not reset")
	}
	var next net.Conn
	if err := inNet(r.l.A, func() (err error) { next, err = net.Dial("tcp4", p.addr()); return err }); err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	r.eventually("held connection", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.waiting) == 1 })
	end()
	other, err := b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	send(next, other, "new")
	send(other, next, "new")
	r.eventually("end of the old connection", end)
	if _, err := to.Read(make([]byte, 8)); err == nil {
		t.Error("the old connection goes on")
	}
}
