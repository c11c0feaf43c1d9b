package remotefs

import (
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// line joins a client and a server by connections that a test cuts: each frame passes a hook first.
type line struct {
	t   *testing.T
	dir string
	s   *Server
	c   *Client

	mu   sync.Mutex
	hook func(toServer bool, h wire.Header) bool // true: the frame is lost, and the connection with it
	down bool                                    // no new connection until up
	lost int
	nc   net.Conn // the server's end of the newest connection
	wg   sync.WaitGroup
}

func newLine(t *testing.T, dir string) *line {
	t.Helper()
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	defer d.Close()
	s, err := NewServer(ServerOptions{Root: d})
	must(t, err)
	s.Grant()
	l := &line{t: t, dir: dir, s: s}
	l.c = l.client(0)
	t.Cleanup(func() {
		within(t, "the client's end", func() { _ = l.c.Close(); _ = l.c.Close() })
		within(t, "the server's end", func() { must(t, s.Close()) })
		within(t, "the connections' end", l.wg.Wait)
	})
	return l
}

// client is the line's client of that life. Only the newest may lose connections.
func (l *line) client(life uint32) *Client {
	return NewClient(l.connect(), ClientOptions{Session: [wire.FileSessionSize]byte{1}, Life: life, Lost: func(error) {
		l.mu.Lock()
		l.lost++
		down := l.down
		l.mu.Unlock()
		if !down {
			_ = l.c.Attach(l.connect()) // fails when the test is over
		}
	}})
}

// die ends the client when the next connection is lost, while fn is under way, and puts another in its place, which is going to ask for again.
func (l *line) die(life uint32, fn func(), again map[uint64]bool) {
	l.t.Helper()
	l.stay()
	lost := l.losses()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	kerneltest.Eventually(l.t, "loss", func() bool { return l.losses() > lost })
	_ = l.c.Close()
	within(l.t, "the operation's end", func() { <-done })
	l.mu.Lock()
	l.down, l.hook = false, nil
	l.mu.Unlock()
	l.c = l.client(life)
	must(l.t, l.c.TakeOver(ctx))
	l.c.TakenOver(again)
}

// settled checks that the server keeps no answer when all is settled and acknowledged.
func (l *line) settled(number uint64) {
	l.t.Helper()
	l.c.Settled(number)
	_, err := l.c.GetAttr(ctx, wire.FileRootNode)
	must(l.t, err)
	n := &l.server().sess
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.kept) > 0 {
		l.t.Errorf("%d answers are kept for ever", len(n.kept))
	}
}

// within runs fn, which must end.
func within(t testing.TB, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(90 * time.Second):
		t.Fatalf("%s does not come", what)
	}
}

// connect gives the client's end of a new connection.
func (l *line) connect() *wire.Conn {
	server, a := net.Pipe()
	b, client := net.Pipe()
	l.mu.Lock()
	s := l.s
	l.nc = server
	l.mu.Unlock()
	l.wg.Go(func() { _ = s.Serve(ctx, wire.NewConn(server)) }) // how it ends is what the client sees
	up, down := wire.NewConn(b), wire.NewConn(a)
	pump := func(from, to *wire.Conn, toServer bool) {
		defer to.Close() // not from: what comes the other way, such as a refusal, is still to be passed on
		for {
			h, p, err := from.Recv()
			if err != nil {
				return
			}
			l.mu.Lock()
			cut := l.hook != nil && l.hook(toServer, h)
			l.mu.Unlock()
			if cut {
				from.Close()
				return
			}
			if to.Send(h.Type, h.Flags, h.ID, p) != nil {
				return
			}
		}
	}
	l.wg.Go(func() { pump(up, down, true) })
	l.wg.Go(func() { pump(down, up, false) })
	return wire.NewConn(client)
}

func (l *line) server() *Server {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.s
}

// cutAt loses the n-th frame of a type, and every one before it.
func (l *line) cutAt(typ wire.Type, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hook = func(_ bool, h wire.Header) bool {
		if h.Type == typ && n > 0 {
			n--
			return true
		}
		return false
	}
}

func (l *line) losses() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// stay leaves the client without a connection from the next loss on; back ends that.
func (l *line) stay() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
}

func (l *line) back() {
	l.mu.Lock()
	l.down = false
	l.mu.Unlock()
	must(l.t, l.c.Attach(l.connect()))
}

// unanswered waits until n requests wait for an answer.
func (l *line) unanswered(n int) {
	l.t.Helper()
	kerneltest.Eventually(l.t, "requests under way", func() bool { return l.c.Waiting() == n })
}
