package migrate

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/wire"
)

// A relay lives in a process that outlives the one with the connection (the warden on the source, the carrier on the target), so that what it has read and written, and
// how far, is not lost with that. Between the two processes go the same messages as on the wire, each with the number of the connection that it is for.
const (
	linkStream   = 110 // both: connection 8 (0 towards the relay), type 2, payload as on the wire
	linkAttach   = 111 // to the relay: connection 8; 0: there is none
	linkBad      = 112 // from the relay: a message of the peer did not fit
	linkFlushed  = 113 // from the relay: all that was read here has been passed on, and nothing will come
	linkCapacity = fdpass.MaxMessage - 64
)

// streamConn is a connection as a relay uses it.
type streamConn interface {
	sendStream(t wire.Type, stream uint32, offset uint64, p []byte) error
}

// relayEnd is the relay's side of the link.
type relayEnd struct {
	sock  *fdpass.Socket
	relay *relay
}

// numbered is one connection of the other process.
type numbered struct {
	sock *fdpass.Socket
	n    uint64
}

func (c *numbered) sendStream(t wire.Type, stream uint32, offset uint64, p []byte) error {
	var e wire.Encoder
	e.U8(linkStream)
	e.U64(c.n)
	e.U16(uint16(t))
	e.U32(stream)
	e.U64(offset)
	e.B = append(e.B, p...)
	return c.sock.Send(e.B)
}

// handle takes a message of the other process.
func (l *relayEnd) handle(b []byte) error {
	d := wire.NewDecoder(b)
	kind, n := d.U8(), d.U64()
	switch {
	case kind == linkAttach && n == 0:
		l.relay.attach(nil)
	case kind == linkAttach:
		l.relay.attach(&numbered{l.sock, n})
	case kind == linkStream:
		t := wire.Type(d.U16())
		if err := l.relay.take(t, d.Rest()); err != nil {
			return l.sock.Send(append([]byte{linkBad}, err.Error()...))
		}
	default:
		return fmt.Errorf("message %d about streams: %w", kind, errLink)
	}
	return d.Err()
}

var errLink = errors.New("unexpected message between lazymig's processes")

// relayLink is the other side: it passes on between a session and the relay's process. A nil one has no streams.
type relayLink struct {
	flushed chan struct{} // closed when the relay says so
	once    sync.Once

	order sync.Mutex // before mu: which connection, which process, and what that is told of it
	mu    sync.Mutex
	sock  *fdpass.Socket
	n     uint64
	sess  *session
	again bool // another process takes the place of one that is gone
	away  bool // it is not there yet
	ended bool // the relay's process is gone
	left  bool // on purpose
}

func newRelayLink(sock *fdpass.Socket) *relayLink {
	return &relayLink{sock: sock, flushed: make(chan struct{})}
}

// listen reads what the relay's process says until its end; messages that are not about streams are other's, if that knows them, with their files.
func (l *relayLink) listen(log *slog.Logger, other func(b []byte, files []*os.File) bool) {
	defer l.end()
	l.mu.Lock()
	sock := l.sock
	l.mu.Unlock()
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := sock.Recv(buf)
		if err != nil {
			fdpass.CloseAll(files)
			return
		}
		if b := buf[:n]; other(b, files) {
			continue
		} else if fdpass.CloseAll(files); !l.handle(b) {
			log.Error("message of the relay's process", "kind", b[0])
		}
	}
}

// attach goes on with another connection; nil: there is none.
func (l *relayLink) attach(s *session) {
	if l == nil {
		return
	}
	l.order.Lock()
	defer l.order.Unlock()
	l.mu.Lock()
	l.n++
	l.sess = s
	n := l.n
	sock := l.sock
	l.mu.Unlock()
	if s == nil {
		n = 0
	}
	if sock != nil {
		_ = sock.Send(attachMessage(n)) // without its process there are no streams any more; whoever reads the socket tells
	}
}

func attachMessage(n uint64) []byte {
	var e wire.Encoder
	e.U8(linkAttach)
	e.U64(n)
	return e.B
}

// follows says whether another process takes the place of one that is gone.
func (l *relayLink) follows(again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.again = again
	l.away = again && l.sock == nil
}

// resume goes on with another process, which knows what the one before had read and passed on. A connection that came meanwhile may have brought what nobody has
// taken: there has to be another.
func (l *relayLink) resume(sock *fdpass.Socket) {
	l.order.Lock()
	defer l.order.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sock, l.away = sock, false
	if l.sess != nil {
		l.sess.c.Close()
	}
}

// end is when the relay's process is gone. If no other takes its place, what it has read and not passed on is lost, so nothing more is carried: whoever writes is told
// that nobody reads, as by a reader that ends, and whoever reads waits. The peer's relay says on another connection what it has.
func (l *relayLink) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended, l.away = !l.again, l.again
	if l.sess != nil && !l.left {
		l.sess.c.Close()
	}
}

// leave is before the link is closed.
func (l *relayLink) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = true
}

// refuse answers a message of the peer when there is no relay any more.
func (l *relayLink) refuse(t wire.Type, p []byte) error {
	d := wire.NewDecoder(p)
	n, offset := d.U32(), d.U64()
	if d.Err() != nil {
		return fmt.Errorf("message about a stream: %w", d.Err())
	}
	l.mu.Lock()
	s := l.sess
	l.mu.Unlock()
	if s == nil || t == wire.MsgStreamAck || t == wire.MsgStreamEnd && d.U8() == streamRefused {
		return nil
	}
	return s.sendStream(wire.MsgStreamEnd, n, offset, []byte{streamRefused})
}

// take passes a message of the peer on.
func (l *relayLink) take(t wire.Type, p []byte) error {
	if l == nil {
		return errors.New("message about a stream: there is none")
	}
	l.mu.Lock()
	ended, away, sock := l.ended, l.away, l.sock
	l.mu.Unlock()
	switch {
	case ended:
		return l.refuse(t, p)
	case away:
		return nil // see resume
	}
	if len(p) > linkCapacity {
		return fmt.Errorf("message about a stream: %d bytes", len(p))
	}
	var e wire.Encoder
	e.U8(linkStream)
	e.U64(0)
	e.U16(uint16(t))
	e.B = append(e.B, p...)
	_ = sock.Send(e.B) // as above: the migration goes on
	return nil
}

// handle takes a message of the relay's process; false: it is not about streams.
func (l *relayLink) handle(b []byte) bool {
	d := wire.NewDecoder(b)
	switch d.U8() {
	case linkStream:
		n, t, stream, offset := d.U64(), wire.Type(d.U16()), d.U32(), d.U64()
		p := d.Rest()
		l.mu.Lock()
		s := l.sess
		if n != l.n {
			s = nil
		}
		l.mu.Unlock()
		if s != nil && d.Err() == nil && s.sendStream(t, stream, offset, p) != nil {
			s.c.Close() // its reader tells; all is sent again on the next
		}
	case linkBad:
		l.mu.Lock()
		s := l.sess
		l.mu.Unlock()
		if s != nil {
			s.c.Close()
		}
	case linkFlushed:
		l.once.Do(func() { close(l.flushed) })
	default:
		return false
	}
	return true
}
