package e2e

import (
	"net"
	"slices"
	"time"
)

// What is late: a connection's end, or its last bytes, that come when the next connection is in use; and everything, by half a minute.

// late resets the source's ends only: it dials again while the agent has all its connections still. Their ends come when new ones are in use.
func (p *proxy) late() func() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next(p.all())
}

// keep keeps what the source says on the connections that there are, and lets no new one in.
func (p *proxy) keep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.keep = true
	}
	p.lost, p.held = 0, true
}

// keeps says whether so many messages have been kept.
func (p *proxy) keeps(enough int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost >= enough
}

// lateBytes is late for connections of which something is kept: before their ends come these bytes.
func (p *proxy) lateBytes() (next func() bool, flush func() (bytes int)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := slices.DeleteFunc(p.all(), func(c *pair) bool { return !c.keep })
	sent := 0
	return p.next(old), func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range old {
			if len(c.kept) > 0 {
				_ = c.ends[1].SetWriteDeadline(time.Now().Add(time.Second)) // what it does not take is late for ever
				n, _ := c.ends[1].Write(c.kept)                             // it may have closed
				sent += n
			}
			c.kept = nil
			_ = c.ends[1].CloseWrite()
		}
		return sent
	}
}

// next resets the source's ends of old connections, and gives what lets new ones in, the last one first, and says whether one is in use; then the agent's ends
// of the old ones end, if nothing is kept of them.
func (p *proxy) next(old []*pair) func() bool {
	for _, c := range old {
		c.lose = [2]bool{true, true}
		c.reset(0)
	}
	p.held = true
	polls := 0
	return func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		if polls++; len(p.waiting) < min(len(old), 2) && polls < 64 { // one alone comes in no other order
			return false
		}
		p.held = false
		for _, w := range slices.Backward(p.waiting) {
			p.wg.Go(func() { p.connect(w.(*net.TCPConn)) })
		}
		p.waiting = nil
		for c := range p.pairs {
			if c.said[0] && c.said[1] && !c.lose[0] {
				for _, o := range old {
					if !o.keep {
						o.reset(1)
					}
				}
				return true
			}
		}
		return false
	}
}

// standstill passes on, after half a minute of a stall, what has gathered, and says whether anything has.
func (p *proxy) standstill() bool {
	<-time.After(30 * time.Second) // the fault is this time, nothing is waited for
	p.mu.Lock()
	some := p.stood > 0
	p.mu.Unlock()
	p.goOn()
	return some
}
