package remotefs

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/lazymig/lazymig/wire"
)

// A client that is killed leaves the answers that it had not passed on to whoever asked it. Who asks gives what may be done only once a
// number of its own (wire.FileCaller), asks the next client again under the same number, and so gets the answer that the server has kept.
// Therefore the answer to a numbered request is acknowledged only when it has been passed on: Settled.
//
//	next client    NewClient (same Session, next Life), TakeOver: which answers does the server keep?
//	asked again    what was under way, under the numbers that it had
//	TakenOver      the other answers had been passed on; the server may forget them

// attached takes the server's answer to the introduction: the IDs of all answers that it keeps.
func (c *Client) attached(b []byte) error {
	if len(b)%8 != 0 || len(b) > 8*wire.MaxFileAcks {
		return fmt.Errorf("introduction is answered by %d bytes: %w", len(b), wire.ErrLong)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inherit != nil {
		return nil // they are this client's own
	}
	c.inherit = map[uint64]bool{}
	for ; len(b) > 0 && c.life > 0; b = b[8:] {
		switch id := binary.BigEndian.Uint64(b); {
		case c.pending[id] != nil:
		case id&ownID != 0:
			c.acks = append(c.acks, id)
		default:
			c.inherit[id] = true
		}
	}
	close(c.told)
	return nil
}

// TakeOver waits until the server has told what it keeps for the client before this one. No numbered request may be made earlier.
func (c *Client) TakeOver(ctx context.Context) error {
	select {
	case <-c.told:
		return nil
	case <-c.done:
		return fmt.Errorf("%w: %w", ErrLost, c.Err())
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrLost, ctx.Err())
	}
}

// TakenOver says which numbers are asked again, or are going to be; the answers to others are no longer wanted.
func (c *Client) TakenOver(again map[uint64]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.inherit {
		if !again[id] {
			delete(c.inherit, id)
			c.acks = append(c.acks, id)
		}
	}
}

// Settled says that the answer to a numbered request has been passed on, or that nobody wants it any more. It may be called for numbers under
// which nothing was asked. What was left for later goes out.
func (c *Client) Settled(number uint64) {
	c.mu.Lock()
	inherited := c.inherit[number]
	mine := c.open[number]
	if mine || inherited && c.pending[number] == nil {
		c.acks = append(c.acks, number)
	}
	delete(c.inherit, number)
	delete(c.open, number)
	later := len(c.later) > 0
	c.mu.Unlock()
	if later {
		c.sendMu.Lock()
		_ = c.sendLater() // fails only when the client has ended
		c.sendMu.Unlock()
	}
	if mine {
		<-c.numbers
	}
}
