package restore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/wire"
)

// source serves a stopped tree's pages and dials lanes when asked, as the source host does.
type source struct {
	t      *testing.T
	srv    *pagesrv.Server
	tls    string
	id     wire.ID
	token  wire.Token
	l      net.Listener
	ctx    context.Context
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  []net.Conn
	handed *Handler
	ready  chan struct{} // closed when handed is set
}

func startSource(t *testing.T, tr *tree, id wire.ID) *source {
	t.Helper()
	s := &source{t: t, tls: t.TempDir(), id: id, token: wire.Token(append([]byte("0123456789abcdef"), id[:]...)), ready: make(chan struct{})}
	if err := errors.Join(keys.Init(s.tls), keys.Host(s.tls, "127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	var err error
	s.srv, err = pagesrv.NewServer(pagesrv.ServerOptions{
		Tasks: []pagesrv.Task{{ID: uint32(tr.pid), PID: tr.host[0]}, {ID: uint32(tr.child), PID: tr.host[1]}}, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.ctx = ctx
	t.Cleanup(func() {
		cancel()
		s.l.Close()
		s.cut()
		s.srv.Close()
		s.wg.Wait()
	})
	return s
}

// cut cuts all connections.
func (s *source) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

// dial makes both lanes anew.
func (s *source) dial(lane wire.Lane) {
	select {
	case <-s.ready:
	case <-s.ctx.Done():
		return
	}
	s.mu.Lock()
	if s.ctx.Err() == nil {
		s.wg.Go(func() { s.serve(lane) })
	}
	s.mu.Unlock()
	a, err := s.l.Accept()
	if err != nil {
		return
	}
	f, err := a.(*net.TCPConn).File()
	a.Close()
	if err != nil {
		s.t.Error(err)
		return
	}
	if err := s.handed.GiveLane(lane, f, false); err != nil && !errors.Is(err, ErrNoHandler) {
		s.t.Log("give lane:", err)
	}
}

func (s *source) serve(lane wire.Lane) {
	nc, err := net.Dial("tcp", s.l.Addr().String())
	if err != nil {
		return
	}
	s.mu.Lock()
	s.conns = append(s.conns, nc)
	s.mu.Unlock()
	defer nc.Close()
	if err := s.lane(nc, lane); err != nil && s.ctx.Err() == nil {
		s.t.Log("lane:", lane, err)
	}
}

func (s *source) lane(nc net.Conn, lane wire.Lane) error {
	k, err := keys.Load(s.tls)
	if err != nil {
		return err
	}
	cfg, err := k.Client("127.0.0.1")
	if err != nil {
		return err
	}
	c := wire.NewConn(tls.Client(nc, cfg))
	if _, err := wire.DialHello(c, wire.Hello{Lane: lane, ID: s.id, Token: s.token}); err != nil {
		return err
	}
	return s.srv.Serve(s.ctx, c, lane)
}

// attach starts c's handler, whose pages come from s.
func (s *source) attach(t *testing.T, c *Capsule) *Handler {
	t.Helper()
	var mu sync.Mutex // one dial at a time
	h, err := c.StartHandler(testContext(t), HandlerOptions{
		TLSDir: s.tls, Token: s.token, Allow: []string{"127.0.0.1"},
		OnLaneLost: func(lane wire.Lane) {
			mu.Lock()
			defer mu.Unlock()
			s.dial(lane)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.handed = h
	close(s.ready)
	return h
}

type lazyTree struct {
	*tree
	c *Capsule
	s *source
	h *Handler
}

// held is a tree restored up to the hold, the source's copy stopped.
func held(t *testing.T, tr *tree) lazyTree { return heldWith(t, tr, func(*tree, *RestoreOptions) {}) }

func heldWith(t *testing.T, tr *tree, change func(*tree, *RestoreOptions)) lazyTree {
	t.Helper()
	pids := tr.tids(t)
	dir, opts := tr.freeze(t)
	change(tr, &opts)
	before := tr.counters()
	c := startCapsule(t, Options{ImagesDir: dir, Hostname: "capsule-test", PIDs: pids})
	s := startSource(t, tr, c.o.ID)
	h := s.attach(t, c)
	began := time.Now()
	if err := c.Restore(testContext(t), opts); err != nil {
		t.Fatal(err)
	}
	t.Logf("restored in %v", time.Since(began))
	if tr.counters() != before {
		t.Fatal("the held tree has run")
	}
	return lazyTree{tr, c, s, h}
}

func (l lazyTree) release(t *testing.T) Resumed {
	t.Helper()
	r, err := l.c.Release(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLazyRestore(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 64))
	l.release(t)
	l.running(t)
	l.drainAndEnd(t)
}

// drainAndEnd drains, kills the source, has all memory verified and lets the tree end.
func (l lazyTree) drainAndEnd(t *testing.T) {
	t.Helper()
	if err := l.c.StartDrain(false); err != nil {
		t.Fatal(err)
	}
	e := event(t, l.c, EventDrained)
	if e.Stats.BytesCopied < uint64(l.mb)<<20 {
		t.Errorf("drained with %+v", e.Stats)
	}
	if s := e.Stats; s.LostPages+s.Misfits+s.AbsentPages+s.ErrorPages != 0 {
		t.Errorf("pages went wrong: %+v", s)
	}
	t.Logf("%+v", e.Stats)
	l.gone(t) // what is missing now would never come
	l.verify(t)
	l.set(boxCommand, 2)
	if e := event(t, l.c, EventExited); unix.WaitStatus(e.Status).ExitStatus() != 7 {
		t.Errorf("exit status %#x, want 7", e.Status)
	}
}

// The runtime's threads of a guardian would hold PIDs as low as these.
func TestLowPIDs(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	tr := startTreeIn(t, 4, true)
	if tr.pid > 10 {
		t.Fatalf("the tree's PIDs are not low: %d", tr.pid)
	}
	l := held(t, tr)
	r := l.release(t)
	l.running(t)
	if n := inNamespace(t, r.PID); n != tr.pid {
		t.Errorf("PID %d in the capsule, want %d", n, tr.pid)
	}
	l.drainAndEnd(t)
}

// A capsule that is killed while its tree is held leaves nothing, and nothing has run.
func TestKillHeld(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 4))
	before := l.counters()
	if err := l.c.Close(); err != nil {
		t.Fatal(err)
	}
	if l.counters() != before {
		t.Error("the held tree has run")
	}
	if _, err := os.Stat(l.c.groups.top); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cgroup is left: %v", err)
	}
	if err := l.c.Restore(testContext(t), RestoreOptions{}); !errors.Is(err, ErrDead) {
		t.Errorf("a closed capsule says %v", err)
	}
	if err := errors.Join(l.c.Kill(), l.c.Close()); err != nil {
		t.Errorf("again: %v", err)
	}
	// The source's tree goes on as before.
	if err := l.d.Abort(); err != nil {
		t.Fatal(err)
	}
	l.running(t)
}

// A capsule is killed in the middle of its drain, with threads waiting for pages.
func TestKillDraining(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 64))
	l.release(t)
	l.running(t)
	l.s.cut()
	if err := l.c.StartDrain(false); err != nil {
		t.Fatal(err)
	}
	if err := l.c.Close(); err != nil {
		t.Fatal(err)
	}
	if n := l.get(boxWrong); n != 0 {
		t.Errorf("%d wrong pages were seen", n)
	}
}

// The handler is killed again and again while a tree of 64 MB drains and its threads read at random.
func TestHandlerKilled(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 64))
	l.release(t)
	l.running(t)
	kill := func() {
		pid := 0
		kerneltest.Eventually(t, "there is a handler", func() bool { pid = l.h.PID(); return pid != 0 })
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
		event(t, l.c, EventHandlerLost)
	}
	for range 10 {
		kill()
	}
	if err := l.c.StartDrain(false); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		kill()
	}
	l.drainAndEnd(t)
}

// The connections are cut again and again.
func TestLanesCut(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 64))
	l.release(t)
	if err := l.c.StartDrain(false); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		kerneltest.Eventually(t, "there are lanes", func() bool { l.s.mu.Lock(); defer l.s.mu.Unlock(); return len(l.s.conns) > 0 })
		l.s.cut()
		l.running(t)
	}
	l.drainAndEnd(t)
}

// kill -9 of the guardian while threads wait for pages: the tree dies, and no thread has seen a page that is zero because
// the userfaultfd was closed.
func TestGuardianKilled(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	for range 5 {
		t.Run("", func(t *testing.T) {
			l := held(t, startTree(t, 64))
			l.s.cut() // nobody gets a page from now on: all threads come to wait
			r := l.release(t)
			l.set(boxCommand, 1) // the main thread reads, too
			kerneltest.Eventually(t, "all threads wait for pages", func() bool { return waiting(t, r.PID) == 5 })
			if err := unix.Kill(l.c.PID(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			select {
			case <-l.c.Done():
			case <-time.After(kerneltest.Patience):
				t.Fatal("the guardian lives")
			}
			if err := l.c.Close(); err != nil {
				t.Fatal(err)
			}
			if n := l.get(boxWrong); n != 0 {
				t.Errorf("%d wrong pages were seen", n)
			}
		})
	}
}

// waiting counts the threads of a process that wait for a userfaultfd.
func waiting(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if string(b) == "handle_userfault" {
			n++
		}
	}
	return n
}
