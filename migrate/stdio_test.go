package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// wires are two relays with a connection between them that can be cut and joined.
type wires struct {
	t    *testing.T
	a, b *relay // a reads stream 0 and 1, b writes them; b reads stream 1 back, a writes it
	cur  [2]*session
}

// join connects the relays anew. What was under way on the old connection is lost.
func (w *wires) join() {
	w.t.Helper()
	w.cut()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	ca, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	cb, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	w.cur = [2]*session{newSession(wire.NewConn(ca), w.a), newSession(wire.NewConn(cb), w.b)}
	w.a.attach(w.cur[0])
	w.b.attach(w.cur[1])
}

func (w *wires) cut() {
	for i, r := range []*relay{w.a, w.b} {
		if w.cur[i] != nil {
			w.cur[i].close()
			r.attach(nil)
		}
	}
}

// pipe makes a pipe of which one end belongs to the relay.
func pipe(t *testing.T, relayReads bool) (mine *os.File, its *streamEnd) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	m, i := p[0], p[1]
	if relayReads {
		m, i = i, m
	}
	e, err := newStreamEnd(i, false, true)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(m), "pipe")
	t.Cleanup(func() { f.Close() })
	return f, e
}

// pair is pipe with a socket.
func pair(t *testing.T) (mine *net.UnixConn, in, out *streamEnd) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(p[0]), "socket")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	d, err := unix.FcntlInt(uintptr(p[1]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if in, err = newStreamEnd(p[1], true, true); err == nil {
		out, err = newStreamEnd(d, true, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn), in, out
}

// newWires makes relays with one pipe (stream 0: w → r) and one socket each (stream 1: sa ↔ sb).
func newWires(t *testing.T) (w *wires, from, to *os.File, sa, sb *net.UnixConn) {
	t.Helper()
	kerneltest.Leaks(t)
	w = &wires{t: t, a: newRelay(), b: newRelay()}
	t.Cleanup(func() {
		w.cut()
		w.a.close()
		w.b.close()
	})
	from, e := pipe(t, true)
	w.a.addOut(0, e)
	to, e = pipe(t, false)
	w.b.addIn(0, e)
	var in, out *streamEnd
	sa, in, out = pair(t)
	w.a.addIn(1, in)
	w.a.addOut(1, out)
	sb, in, out = pair(t)
	w.b.addIn(1, in)
	w.b.addOut(1, out)
	w.a.start()
	w.b.start()
	return w, from, to, sa, sb
}

// numbers are n bytes that tell where they stand.
func numbers(n int) []byte {
	b := make([]byte, 0, n+10)
	for i := 0; len(b) < n; i++ {
		b = fmt.Appendf(b, "%d\n", i)
	}
	return b[:n]
}

// TestRelay sends megabytes three ways at once while the connection is cut again and again: each byte comes once and in order, and so do
// the ends.
func TestRelay(t *testing.T) {
	w, from, to, sa, sb := newWires(t)
	want := numbers(6 << 20)
	var wg sync.WaitGroup
	write := func(f io.WriteCloser, end func() error) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, 2))
			for b := want; len(b) > 0; {
				n := min(len(b), 1+rnd.IntN(100_000))
				if _, err := f.Write(b[:n]); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				b = b[n:]
			}
			if err := end(); err != nil {
				t.Errorf("end: %v", err)
			}
		})
	}
	done := make(chan string, 3)
	read := func(what string, f io.Reader) {
		wg.Go(func() {
			got, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes of %d came, or others than were sent: %v", what, len(got), len(want), err)
			}
			done <- what
		})
	}
	read("pipe", to)
	read("socket, one way", sb)
	read("socket, other way", sa)
	write(from, from.Close)
	write(sa, sa.CloseWrite)
	write(sb, sb.CloseWrite)
	late := time.After(time.Minute)
	rnd := rand.New(rand.NewPCG(3, 4))
	for left, cuts := 3, 0; left > 0; {
		w.join()
		cuts++
		for range rnd.IntN(3) { // it lives for some acknowledgements
			before := w.a.moved() + w.b.moved()
			kerneltest.Eventually(t, "bytes to pass", func() bool {
				return w.a.moved()+w.b.moved() > before+1 || len(done) > 0
			})
		}
		if cuts > 40 { // from now on it lives
			select {
			case <-done:
				left--
			case <-late:
				t.Fatal("not all came")
			}
			cuts = 40 - 1
			continue
		}
		select {
		case <-done:
			left--
		default:
		}
	}
	wg.Wait()
}

// moved is how many bytes are acknowledged.
func (r *relay) moved() (n uint64) {
	for _, o := range r.out {
		o.mu.Lock()
		n += o.acked
		o.mu.Unlock()
	}
	return n
}

// TestRelayWaits: bytes that nobody takes, and a connection that is not there, stop the writer after a bounded number.
func TestRelayWaits(t *testing.T) {
	w, from, to, _, _ := newWires(t)
	want := numbers(8 << 20)
	fill := func() int { // until the pipe is full and stays full
		n := 0
		for {
			if err := from.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			m, err := from.Write(want[n:])
			n += m
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			if n == len(want) {
				t.Fatal("all of it was taken though nobody reads")
			}
		}
	}
	n := fill()
	if n > streamWindow+(1<<20) {
		t.Errorf("%d bytes were taken without a connection", n)
	}
	w.join()
	want2 := want
	want = want[n:]
	n += fill()
	if n > 2*streamWindow+(2<<20) {
		t.Errorf("%d bytes were taken though nobody reads", n)
	}
	from.Close()
	got, err := io.ReadAll(to)
	if err != nil || !bytes.Equal(got, want2[:n]) {
		t.Errorf("%d bytes of %d came: %v", len(got), n, err)
	}
}

// TestRelayHangUp: whoever writes is told that the reader is gone, also when that happened while there was no connection.
func TestRelayHangUp(t *testing.T) {
	for _, before := range []bool{true, false} {
		t.Run(fmt.Sprint(before), func(t *testing.T) {
			w, from, to, sa, sb := newWires(t)
			if before {
				w.join()
			}
			to.Close()
			sb.Close()
			if !before {
				w.join()
			}
			kerneltest.Eventually(t, "the pipe to break", func() bool {
				_, err := from.Write([]byte("x"))
				return errors.Is(err, unix.EPIPE)
			})
			kerneltest.Eventually(t, "the socket to break", func() bool {
				_, err := sa.Write([]byte("x"))
				return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
			})
			if n, err := sa.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read %d bytes, %v, of a socket whose other end is closed", n, err)
			}
			kerneltest.Eventually(t, "all to be sent", func() bool { return w.a.allSent() && w.b.allSent() })
		})
	}
}

// TestIncomingRefused: bytes that were under way when the reader went away are not a gap; the connection goes on.
func TestIncomingRefused(t *testing.T) {
	f, e := pipe(t, false)
	i := newIncoming(e, func() {})
	if !i.take(0, []byte("abc")) {
		t.Fatal("the first bytes do not fit")
	}
	f.Close()
	i.run() // nobody reads: it ends at once
	if !i.take(3, []byte("def")) || !i.takeEnd(6) {
		t.Error("what was under way is taken for a gap")
	}
	if offset, _, end := i.next(); !end || offset != 0 {
		t.Errorf("tells offset %d, end %v", offset, end)
	}
}

// TestRelayNonsense: messages that do not fit end the connection and change nothing.
func TestRelayNonsense(t *testing.T) {
	w, _, _, _, _ := newWires(t)
	msg := func(n uint32, offset uint64, rest ...byte) []byte {
		var e wire.Encoder
		e.U32(n)
		e.U64(offset)
		return append(e.B, rest...)
	}
	for _, c := range []struct {
		what string
		typ  wire.Type
		p    []byte
	}{
		{"short", wire.MsgStream, []byte{0, 0}},
		{"no such stream", wire.MsgStream, msg(7, 0, 'x')},
		{"a stream that is read here", wire.MsgStream, msg(2, 0, 'x')},
		{"a gap", wire.MsgStream, msg(0, 1, 'x')},
		{"more than allowed", wire.MsgStream, msg(0, 0, make([]byte, streamWindow+1)...)},
		{"offset that wraps", wire.MsgStream, msg(0, ^uint64(0), 'x')},
		{"ack of what was never sent", wire.MsgStreamAck, msg(1, 1)},
		{"ack of nothing", wire.MsgStreamAck, msg(9, 0)},
		{"end with a gap", wire.MsgStreamEnd, msg(0, 1, streamEOF)},
		{"end of what is read here", wire.MsgStreamEnd, msg(5, 0, streamRefused)},
		{"unknown end", wire.MsgStreamEnd, msg(0, 0, 3)},
		{"long end", wire.MsgStreamEnd, msg(0, 0, 1, 1)},
	} {
		if err := w.b.take(c.typ, c.p); err == nil {
			t.Errorf("%s: accepted", c.what)
		}
	}
	if err := (*relay)(nil).take(wire.MsgStream, msg(0, 0)); err == nil {
		t.Error("accepted without a relay")
	}
}

// TestStdioSlot: what the source asks for is checked.
func TestStdioSlot(t *testing.T) {
	good := []stdioSlot{
		{Key: "pipe:[1]", To: StdioRelay, Read: true},
		{Key: "pipe:[4294967295]", To: "/var/log/x", Write: true},
		{Key: "socket:[5]", To: StdioJournal, Read: true, Write: true},
	}
	for _, s := range good {
		if err := s.check(); err != nil {
			t.Error(err)
		}
	}
	bad := []stdioSlot{
		{Key: "/etc/passwd", To: StdioRelay, Read: true},
		{Key: "pipe:[1]x", To: StdioRelay, Read: true},
		{Key: "pipe:[1]", To: "", Read: true},
		{Key: "pipe:[1]", To: "etc", Read: true},
		{Key: "pipe:[1]", To: StdioNull},
		{Key: "pipe:[1]", To: StdioNull, Read: true, Write: true},
		{Key: "pipe:[1]", To: StdioNull, Read: true, Stream: maxStdio},
	}
	for _, s := range bad {
		if s.check() == nil {
			t.Errorf("accepted: %+v", s)
		}
	}
}

// FuzzRelayTake: whatever a peer says about streams, the relay keeps no more than it allows.
func FuzzRelayTake(f *testing.F) {
	f.Add(uint16(wire.MsgStream), uint32(0), uint64(0), []byte("bytes"))
	f.Add(uint16(wire.MsgStreamAck), uint32(1), uint64(1), []byte{})
	f.Add(uint16(wire.MsgStreamEnd), uint32(0), uint64(0), []byte{streamEOF})
	f.Add(uint16(wire.MsgStreamEnd), uint32(1), ^uint64(0), []byte{streamRefused})
	f.Fuzz(func(t *testing.T, typ uint16, n uint32, offset uint64, p []byte) {
		to, from, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		defer to.Close()
		r := newRelay()
		defer r.close()
		for i := range uint32(2) { // never started: what is taken stays
			fd, err := unix.FcntlInt(from.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			e, err := newStreamEnd(fd, false, true)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				r.addIn(i, e)
			} else {
				r.addOut(i, e)
			}
		}
		var e wire.Encoder
		e.U32(n)
		e.U64(offset)
		for range 3 {
			_ = r.take(wire.Type(typ), append(e.B, p...)) // an error ends the connection
		}
		if len(r.in[0].buf) > streamWindow || r.out[1].acked != 0 {
			t.Fatalf("%d bytes are kept, %d are taken for acknowledged", len(r.in[0].buf), r.out[1].acked)
		}
	})
}
