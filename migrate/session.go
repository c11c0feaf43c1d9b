package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lazymig/lazymig/wire"
)

const (
	pingEvery = time.Second
	silence   = wire.Silence
)

// frame is one message of the peer.
type frame struct {
	h wire.Header
	p []byte
}

// session is one control connection in use: a goroutine reads frames, another sends pings and answers them; a peer that is
// silent for too long counts as lost. frames is closed at the end, err says why then.
type session struct {
	c      *wire.Conn
	peer   stateMsg // what the peer said of itself when it came back
	frames chan frame
	err    error // after frames is closed
	relay  atomic.Pointer[streamTaker]
	beat   *time.Ticker // of pings
	pongs  chan uint64  // to be sent
	heard  hearing

	progress func(progressMsg) // called by await for what a target says of how far it is; nil: nothing is expected

	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup
	done chan struct{} // closed by close
}

// streamTaker takes messages about standard streams: a relay, or the way to one. Both may be nil pointers: then none are expected.
type streamTaker interface {
	take(t wire.Type, p []byte) error
}

func newSession(c *wire.Conn, r streamTaker) *session {
	s := &session{c: c, frames: make(chan frame, 16), pongs: make(chan uint64, 1), quit: make(chan struct{}), done: make(chan struct{})}
	s.beat = time.NewTicker(pingEvery)
	s.carry(r)
	s.wg.Go(s.read)
	s.wg.Go(s.ping)
	return s
}

// carry says who takes messages about streams from now on; nil: nobody.
func (s *session) carry(r streamTaker) {
	if r == nil {
		r = (*relay)(nil)
	}
	s.relay.Store(&r)
}

func (s *session) read() {
	defer s.c.Close() // or our pings would tell the peer that we hear it
	defer close(s.frames)
	for {
		_ = s.c.Net().SetReadDeadline(time.Now().Add(silence)) // fails only when closed, and then so does the read
		s.heard.listen()
		h, p, err := s.c.Recv()
		s.heard.something()
		if gone := s.heard.gone.Load(); gone != nil {
			err = *gone
		}
		if err != nil {
			s.err = fmt.Errorf("control connection: %w", err)
			return
		}
		switch h.Type {
		case wire.MsgPing:
			select {
			case s.pongs <- h.ID: // not here: it waits for a frame that is on its way, on a slow link for long
			default: // nor is it needed then
			}
			continue
		case wire.MsgPong:
			continue
		case wire.MsgStream, wire.MsgStreamAck, wire.MsgStreamEnd: // here, so that no stream holds up another message, or a ping
			if err := (*s.relay.Load()).take(h.Type, p); err != nil {
				s.err = fmt.Errorf("control connection: %w", err)
				s.c.Close()
				return
			}
			continue
		}
		select {
		case s.frames <- frame{h, p}:
		case <-s.quit:
			s.err = errors.New("control connection: given up")
			return
		}
	}
}

func (s *session) ping() {
	defer s.beat.Stop()
	for {
		var err error
		select {
		case <-s.beat.C:
			err = s.send(wire.MsgPing, nil)
		case id := <-s.pongs:
			err = s.c.Send(wire.MsgPong, 0, id)
		case <-s.quit:
			return
		}
		if err != nil {
			s.c.Close() // the reader tells
			return
		}
	}
}

// send sends one message; v is nil or encoded as JSON.
func (s *session) send(t wire.Type, v any) error {
	_ = s.c.Net().SetWriteDeadline(time.Now().Add(silence)) // as above
	var err error
	if v == nil {
		err = s.c.Send(t, 0, 0)
	} else {
		err = s.c.Send(t, 0, 0, encode(v))
	}
	if err != nil {
		return fmt.Errorf("control connection: %w", err)
	}
	return nil
}

// sendParts sends one message whose payload is the parts.
func (s *session) sendParts(t wire.Type, parts ...[]byte) error {
	return s.sendFlagged(t, 0, parts...)
}

// sendFlagged is sendParts with flags.
func (s *session) sendFlagged(t wire.Type, flags uint16, parts ...[]byte) error {
	_ = s.c.Net().SetWriteDeadline(time.Now().Add(silence)) // as above
	if err := s.c.Send(t, flags, 0, parts...); err != nil {
		return fmt.Errorf("control connection: %w", err)
	}
	return nil
}

// sendStream sends one message about a stream.
func (s *session) sendStream(t wire.Type, stream uint32, offset uint64, p []byte) error {
	var e wire.Encoder
	e.U32(stream)
	e.U64(offset)
	return s.sendParts(t, e.B, p)
}

// await waits for one kind of message, decodes it into v unless that is nil, and calls dial for requests to dial lanes meanwhile. An
// error of the peer, anything unexpected, or the end of limit ends it.
func (s *session) await(ctx context.Context, want wire.Type, v any, limit time.Duration, dial func(context.Context, dialMsg)) error {
	late := time.NewTimer(limit)
	defer late.Stop()
	for {
		select {
		case f, ok := <-s.frames:
			switch {
			case !ok:
				return s.err
			case f.h.Type == want && v == nil:
				return nil
			case f.h.Type == want:
				return decode(f.p, v)
			case f.h.Type == wire.MsgDial && dial != nil:
				var m dialMsg
				if err := decode(f.p, &m); err != nil {
					return err
				}
				dial(ctx, m)
			case f.h.Type == wire.MsgProgress && s.progress != nil:
				var m progressMsg
				if err := decode(f.p, &m); err != nil {
					return err
				}
				s.progress(m)
			case f.h.Type == wire.MsgError:
				return wire.ParseError(f.p)
			default:
				return fmt.Errorf("peer says message %d while %d is expected", f.h.Type, want)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			return fmt.Errorf("peer did not answer within %v", limit)
		}
	}
}

// close ends the session and waits for its goroutines. May be called more than once.
func (s *session) close() {
	s.once.Do(func() {
		close(s.quit)
		s.c.Close()
		s.wg.Wait()
		close(s.done)
	})
}
