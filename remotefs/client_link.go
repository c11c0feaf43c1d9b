package remotefs

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/lazymig/lazymig/wire"
)

// clientLink is one connection of a Client. Two goroutines: one reads replies, the other introduces the client, sends
// what has not been answered again, and ends when new requests go out by their callers.
type clientLink struct {
	c    *wire.Conn
	done chan struct{} // both have ended: nothing touches a call's buffers any more
}

func (l *clientLink) kill() { hangUp(l.c) }

// hangUp closes a connection at once, whatever is stuck in it: TLS would first say goodbye, which may wait.
func hangUp(c *wire.Conn) {
	nc := c.Net()
	for {
		above, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = above.NetConn()
	}
	_ = nc.Close()
	_ = c.Close()
}

// Attach gives the client a new connection; the one before, if there still is one, is given up. Requests without an answer are sent again
// in their order, those that come meanwhile after them. An error means that the client has ended.
func (c *Client) Attach(conn *wire.Conn) error {
	c.attachMu.Lock()
	defer c.attachMu.Unlock()
	l := &clientLink{c: conn, done: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		l.kill()
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	old := c.link
	c.link, c.direct = l, nil
	c.wg.Add(1) // with mu: Close waits only after it has set err
	c.mu.Unlock()
	if old != nil {
		old.kill()
		<-old.done
	}
	go func() {
		defer c.wg.Done()
		c.runLink(l)
	}()
	return nil
}

// runLink uses one connection until it ends, and then settles what that means.
func (c *Client) runLink(l *clientLink) {
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.resend(l); err != nil {
			l.kill() // the reader tells
		}
	})
	err := c.readReplies(l)
	l.kill()
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(l.done)
	if c.link != l {
		return // replaced
	}
	c.link, c.direct = nil, nil
	var bad *violation
	if c.err == nil && (c.lost == nil || errors.As(err, &bad)) {
		c.err = err
	}
	if c.err != nil {
		close(c.done)
		return
	}
	c.log.Warn("connection to the source's files is lost", "unanswered", len(c.pending), "err", err)
	c.wg.Go(func() { c.lost(err) })
}

// resend introduces the client and sends all that has no answer, until there is nothing that was not sent.
func (c *Client) resend(l *clientLink) error {
	if err := l.c.Send(wire.MsgFileAttach, 0, 0, c.session[:]); err != nil {
		return err
	}
	last := uint64(0)
	for {
		c.mu.Lock()
		var next *call
		for _, p := range c.pending {
			if p.seq > last && (next == nil || p.seq < next.seq) {
				next = p
			}
		}
		if next == nil {
			if c.link == l && c.err == nil {
				c.direct = l
			}
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		if err := l.c.Send(next.typ, 0, next.id, next.parts...); err != nil {
			return err
		}
		last = next.seq
	}
}

// violation is what no right server sends. It ends the client for good: asking again would not help.
type violation struct{ err error }

func (v *violation) Error() string { return v.err.Error() }
func (v *violation) Unwrap() error { return v.err }

func (c *Client) readReplies(l *clientLink) error {
	for {
		h, err := l.c.ReadHeader()
		if err != nil {
			return err
		}
		c.mu.Lock()
		p := c.pending[h.ID]
		c.mu.Unlock()
		if p == nil {
			b, err := l.c.ReadPayload(h, nil)
			if err != nil {
				return err
			}
			switch {
			case h.ID != 0:
			case h.Type == wire.MsgError:
				return &violation{fmt.Errorf("introduce to the source's file server: %w", wire.ParseError(b))}
			case h.Type == wire.MsgFileAttach+1:
				if err := c.attached(b); err != nil {
					return &violation{err}
				}
			}
			continue
		}
		var buf []byte
		if h.Type == p.typ+1 && p.dst != nil {
			if int(h.Length) > len(p.dst) {
				return &violation{fmt.Errorf("reply of %d bytes where %d were asked: %w", h.Length, len(p.dst), wire.ErrLong)}
			}
			buf = p.dst
		}
		b, err := l.c.ReadPayload(h, buf)
		if err != nil {
			return err
		}
		switch h.Type {
		case p.typ + 1:
			p.reply = b
		case wire.MsgError:
			p.err = wire.ParseError(b)
		default:
			return &violation{fmt.Errorf("reply %d where %d was due", h.Type, p.typ+1)}
		}
		c.answered(h.ID, p)
	}
}

// answered ends the wait for a reply. The answer to a numbered request is acknowledged only when it is settled.
func (c *Client) answered(id uint64, p *call) {
	c.mu.Lock()
	delete(c.pending, id)
	switch {
	case id&ownID == 0:
		c.open[id] = true
	case ops[p.typ].once:
		c.acks = append(c.acks, id)
	}
	c.mu.Unlock()
	close(p.ready)
	<-c.window
}
