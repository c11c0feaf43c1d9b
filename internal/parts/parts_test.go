package parts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestMain is a handler and a carrier, too: they say what they are, and end with what they hear.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1][0] != '-' && os.Args[1] != Handler && os.Args[1] != Carrier {
		os.Exit(91) // started, though it must be refused: this test would run again in it, and so on without end
	}
	if len(os.Args) > 1 && (os.Args[1] == Handler || os.Args[1] == Carrier) {
		s, err := fdpass.New(os.NewFile(3, "control"))
		if err != nil {
			os.Exit(90)
		}
		sid, _ := unix.Getsid(0) // of itself: does not fail
		_ = s.Send([]byte(fmt.Sprint(os.Args[1:], " ", len(os.Environ()), " ", sid == os.Getpid())))
		buf := make([]byte, 10)
		if n, _, err := s.Recv(buf); err == nil && string(buf[:n]) == "fail" {
			os.Exit(3)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") { // another part, which should not have been started
		os.Exit(91)
	}
	os.Exit(m.Run())
}

// serve runs a server on the other end of a client's socket.
func serve(t *testing.T, s *Server, lost func()) *Client {
	t.Helper()
	sock, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	other, err := fdpass.New(peer)
	if err != nil {
		t.Fatal(err)
	}
	if s.Failed == nil {
		s.Failed = func(string, error) {}
	}
	c := NewClient(sock, lost)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(other); err != nil {
			t.Error(err)
		}
		other.Close()
	})
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
	return c
}

// part starts one by a starter, or here, and returns what it says and its socket.
func part(t *testing.T, start func(Spec) (*Process, error), s Spec) (*Process, *fdpass.Socket, string) {
	t.Helper()
	sock, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	s.Files = append([]*os.File{peer}, s.Files...)
	p, err := start(s)
	peer.Close()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1000)
	n, _, err := sock.Recv(buf)
	if err != nil {
		t.Fatal(err)
	}
	return p, sock, string(buf[:n])
}

// TestStart: a part begins with what the table says, whoever starts it, and its end is told.
func TestStart(t *testing.T) {
	kerneltest.Leaks(t)
	dir := t.TempDir()
	mine := filepath.Join(dir, "mine")
	if err := os.Mkdir(mine, 0o700); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c := serve(t, &Server{Dir: dir}, func() { t.Error("lost") })
	for name, start := range map[string]func(Spec) (*Process, error){"here": Here{}.Start, "by a starter": c.Start} {
		t.Run(name, func(t *testing.T) {
			h, sock, says := part(t, start, Spec{Name: Handler, Files: []*os.File{null}})
			if says != "[handler] 2 true" { // two of all variables
				t.Errorf("a handler says %q", says)
			}
			if err := sock.Send([]byte("fail")); err != nil {
				t.Fatal(err)
			}
			if err := h.Wait(); err == nil || !strings.Contains(err.Error(), "exit status 3") {
				t.Errorf("a handler that fails ends with %v", err)
			}
			if err := errors.Join(h.Kill(), ignore(h.Wait())); err != nil {
				t.Errorf("one that has ended: %v", err)
			}
			p, sock, says := part(t, start, Spec{Name: Carrier, Dir: mine})
			if want := fmt.Sprintf("[carrier %s] %d true", mine, len(os.Environ())); says != want {
				t.Errorf("a carrier says %q, not %q", says, want)
			}
			if err := p.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Errorf("a carrier that is killed ends with %v", err)
			}
			sock.Close()
			p, sock, _ = part(t, start, Spec{Name: Carrier, Dir: mine})
			sock.Close()
			if err := p.Wait(); err != nil {
				t.Errorf("a carrier that ends: %v", err)
			}
		})
	}
}

func ignore(error) error { return nil }

// TestRefused: who starts parts for another does not do what is not in the table, whatever the other has checked.
func TestRefused(t *testing.T) {
	kerneltest.Leaks(t)
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(dir+"/mine", 0o700), os.Symlink("/etc", dir+"/link"), os.WriteFile(dir+"/file", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var refused []string
	var mu sync.Mutex
	c := serve(t, &Server{Dir: dir, Failed: func(op string, _ error) {
		mu.Lock()
		refused = append(refused, op)
		mu.Unlock()
	}}, func() { t.Error("lost") })
	asks := []struct {
		body  any
		files int
	}{
		{startBody{Name: "sh"}, 1},
		{startBody{Name: "agent"}, 1},
		{startBody{Name: Handler}, 1},                               // it takes two
		{startBody{Name: Handler, Dir: dir + "/mine"}, 2},           // and no directory
		{startBody{Name: Carrier}, 1},                               // it needs one
		{startBody{Name: Carrier, Dir: "/etc"}, 1},                  // elsewhere
		{startBody{Name: Carrier, Dir: dir}, 1},                     // not below
		{startBody{Name: Carrier, Dir: dir + "/mine/../../etc"}, 1}, // not clean
		{startBody{Name: Carrier, Dir: dir + "/link"}, 1},           // elsewhere, too
		{startBody{Name: FuseKeeper, Dir: dir + "/file"}, 1},        // no directory
		{startBody{Name: FuseKeeper, Dir: dir + "/none"}, 1},        // nothing
		{startBody{Name: Guardian}, 2},                              // without a cgroup
		{startBody{Name: Guardian, Cgroup: true}, 3},                // in what is none
		{startBody{Name: Switch, Cgroup: true}, 2},                  // as well
		{startBody{Name: Switch, Cgroup: true}, 0},                  // in nothing
		{startBody{Name: Handler, Dir: "", Cgroup: true}, 3},        // in one that it does not take
		{nil, 0},
		{"handler", 2},
	}
	for _, a := range asks {
		files := make([]*os.File, a.files)
		for i := range files {
			files[i] = null
		}
		if err := c.Call(opStart, a.body, nil, files...); err == nil {
			t.Errorf("%+v with %d files is started", a.body, a.files)
		}
	}
	if err := c.Call("exec", "/bin/sh", nil); !errors.Is(err, unix.EPERM) {
		t.Errorf("an operation that there is not: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(refused) != len(asks)+1 {
		t.Errorf("%d of %d are told", len(refused), len(asks)+1)
	}
}

// TestLost: who asks hears of the other's end, before anybody takes it for the end of a part.
func TestLost(t *testing.T) {
	kerneltest.Leaks(t)
	sock, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	asked, lost, again := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	c := NewClient(sock, func() {
		close(lost)
		<-again // as long as this takes
	})
	got := make(chan error, 1)
	go func() {
		close(asked)
		got <- c.Call("facts", nil, nil)
	}()
	<-asked
	peer.Close()
	<-lost
	select {
	case err := <-got:
		if err == nil { // it may not have been sent
			t.Error("a call is answered by nobody")
		}
		got <- err
	default:
	}
	close(again)
	if err := <-got; err == nil {
		t.Error("a call is answered by nobody")
	}
	c.Close()
	if err := c.Call("facts", nil, nil); !errors.Is(err, ErrLost) {
		t.Errorf("a call after the end: %v", err)
	}
}
