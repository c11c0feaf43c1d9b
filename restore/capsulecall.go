package restore

import (
	"context"
	"encoding/json"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// answer is what the guardian says to a call.
type answer struct {
	m     message
	files []*os.File
}

// read takes what the guardian says until its end, then reaps it.
func (c *Capsule) read() {
	defer c.readers.Done()
	r := newReceiver(c.ctl)
	for reset := false; ; {
		m, files, err := r.next()
		if errors.Is(err, unix.ECONNRESET) && !reset {
			// The guardian ended without having read all. The kernel tells that first, once; what it said stands behind.
			reset = true
			continue
		}
		if err != nil {
			if !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.ECONNRESET) {
				c.log.Error("guardian", "err", err)
			}
			break
		}
		switch m.Op {
		case opEvent:
			fdpass.CloseAll(files)
			var e Event
			if err := json.Unmarshal(m.Body, &e); err != nil {
				c.log.Error("decode guardian's event", "err", err)
				continue
			}
			c.events.put(e)
		case opAnswer:
			c.mu.Lock()
			ch := c.calls[m.Seq]
			delete(c.calls, m.Seq)
			early := ch == nil && m.Seq > c.seq && c.early == nil && len(files) == 0
			if early { // why it cannot even begin
				c.early = &answer{m: m}
			}
			c.mu.Unlock()
			if early {
				continue
			}
			if ch == nil {
				fdpass.CloseAll(files)
				continue
			}
			ch <- answer{m, files}
		default:
			fdpass.CloseAll(files)
			c.log.Error("guardian", "err", errMessage, "op", m.Op)
		}
	}
	close(c.silent)
	c.mu.Lock()
	leaving, abandoned := c.leaving, c.abandoned
	c.mu.Unlock()
	// Its socket is closed, so it is about to end; make sure of it before anybody waits for ever.
	if abandoned {
		return
	}
	if !leaving {
		if err := c.proc.kill(); err != nil {
			c.log.Error("kill guardian", "err", err)
		}
	}
	if err := c.proc.wait(); err != nil {
		c.log.Debug("guardian ended", "how", err)
	}
	close(c.dead)
	c.events.end()
}

// call sends one request to the guardian and waits for its answer, whose descriptors are the caller's.
func (c *Capsule) call(ctx context.Context, op string, body any, files ...*os.File) (message, []*os.File, error) {
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.closed || c.ctl == nil {
		c.mu.Unlock()
		return message{}, nil, ErrDead
	}
	c.seq++
	seq := c.seq
	if a := c.early; a != nil && a.m.Seq == seq {
		c.early = nil
		c.mu.Unlock()
		return a.result()
	}
	c.calls[seq] = ch
	c.mu.Unlock()
	err := sendMessage(c.ctl, message{Op: op, Seq: seq}, body, files...)
	if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) { // those: it has ended, perhaps with an answer
		c.forget(seq, ch)
		return message{}, nil, err
	}
	select {
	case a := <-ch:
		return a.result()
	case <-c.dead:
		select {
		case a := <-ch: // it came just before
			return a.result()
		default:
		}
		c.forget(seq, ch)
		if err != nil {
			return message{}, nil, errors.Join(ErrNotTold, err)
		}
		return message{}, nil, ErrDead
	case <-ctx.Done():
		c.forget(seq, ch)
		return message{}, nil, context.Cause(ctx)
	}
}

func (a answer) result() (message, []*os.File, error) {
	if a.m.Err != nil {
		fdpass.CloseAll(a.files)
		return a.m, nil, a.m.Err
	}
	return a.m, a.files, nil
}

// forget drops a call whose answer nobody waits for any more.
func (c *Capsule) forget(seq uint64, ch chan answer) {
	c.mu.Lock()
	_, waiting := c.calls[seq]
	delete(c.calls, seq)
	c.mu.Unlock()
	if waiting {
		return
	}
	select { // read has taken ch out: the answer is in it or about to be
	case a := <-ch:
		fdpass.CloseAll(a.files)
	case <-c.dead:
	}
}
