package pagesrv

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// patience bounds what a test waits for; nothing is expected to take a fraction of it.
const patience = 2 * time.Minute

//go:embed testdata/mem.c
var program string

// area is what the program says of one mapping.
type area struct {
	name   string
	start  uint64
	pages  uint32
	expect string
}

// target is the stopped program.
type target struct {
	pid   int
	areas []area
	cmd   *exec.Cmd
	out   *bufio.Scanner
	ended sync.Once
}

func start(t testing.TB, args ...string) *target {
	t.Helper()
	kerneltest.Need(t, kerneltest.Root)
	cmd := exec.Command(kerneltest.CompileC(t, program), args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &target{pid: cmd.Process.Pid, cmd: cmd}
	t.Cleanup(p.kill)
	p.out = bufio.NewScanner(out)
	p.stopped(t)
	return p
}

// stopped reads what the program says until it has stopped itself.
func (p *target) stopped(t testing.TB) {
	t.Helper()
	p.areas = nil
	s := p.out
	for s.Scan() && s.Text() != "end" {
		var a area
		if _, err := fmt.Sscanf(s.Text(), "%s %x %d %s", &a.name, &a.start, &a.pages, &a.expect); err != nil {
			t.Fatalf("line %q: %v", s.Text(), err)
		}
		p.areas = append(p.areas, a)
	}
	if s.Text() != "end" {
		t.Fatalf("program ended early: %v", s.Err())
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, p.pid, &info, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

// kill ends the program and reaps it.
func (p *target) kill() {
	p.ended.Do(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
}

func (p *target) area(t testing.TB, name string) area {
	t.Helper()
	for _, a := range p.areas {
		if a.name == name {
			return a
		}
	}
	t.Fatalf("program has no area %q", name)
	return area{}
}

// pattern is what testdata/mem.c's fill writes to a page.
func pattern(addr uint64) []byte {
	b := make([]byte, PageSize)
	for i := uint64(0); i < PageSize; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], (addr+i)*0x9E3779B97F4A7C15^0x5bd1e995)
	}
	return b
}

func newServer(t testing.TB, tasks ...Task) *Server {
	t.Helper()
	s, err := NewServer(ServerOptions{Tasks: tasks})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// pair makes a TCP connection over loopback.
func pair(t testing.TB) (*wire.Conn, *wire.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return wire.NewConn(a), wire.NewConn(b)
}

// attach connects a client's lane to a server; the channel yields what Serve returned.
func attach(t testing.TB, s *Server, c *Client, lane wire.Lane) <-chan error {
	t.Helper()
	a, b := pair(t)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(context.Background(), a, lane) }()
	c.Attach(lane, b)
	return ended
}

func newClient(t testing.TB) *Client {
	t.Helper()
	c := NewClient(ClientOptions{})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// got is an answer with its pages apart: nil where there are no bytes.
type got struct {
	runs  []Run
	kinds []Kind
	errno []unix.Errno
	pages [][]byte
}

func await[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func fetch(t testing.TB, c *Client, lane wire.Lane, req Request) (got, error) {
	t.Helper()
	return fetchBy(t, req.Pages, func(dst []byte, done func(Reply, error)) error { return c.Fetch(lane, req, dst, done) })
}

// fetchBy is what f fetches.
func fetchBy(t testing.TB, pages uint32, f func(dst []byte, done func(Reply, error)) error) (got, error) {
	t.Helper()
	type result struct {
		g   got
		err error
	}
	ch := make(chan result, 1)
	dst := make([]byte, int(pages)*PageSize)
	for i := range dst {
		dst[i] = 0xaa
	}
	err := f(dst, func(r Reply, err error) {
		var g got
		at := 0
		for _, run := range r.Runs {
			g.runs = append(g.runs, run)
			for range run.Pages {
				g.kinds, g.errno = append(g.kinds, run.Kind), append(g.errno, run.Errno)
				if run.Kind != KindData {
					g.pages = append(g.pages, nil)
					continue
				}
				g.pages = append(g.pages, dst[at:at+PageSize])
				at += PageSize
			}
		}
		if at != r.Bytes {
			err = errors.Join(err, fmt.Errorf("reply has %d bytes, its runs %d", r.Bytes, at))
		}
		ch <- result{g, err}
	})
	if err != nil {
		return got{}, err
	}
	r := await(t, "answer", ch)
	return r.g, r.err
}
