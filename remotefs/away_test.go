package remotefs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestAway: without a connection calls wait, for a new one or for the end.
func TestAway(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	e, err := l.c.Lookup(ctx, root, 1, ".x")
	if !errors.Is(err, unix.ENOENT) {
		t.Fatalf("%+v, %v", e, err)
	}
	l.stay()
	l.cutAt(wire.MsgFileMkdir+1, 1)
	const callers = 2 * maxUnanswered
	got := make(chan error, callers)
	for i := range callers {
		go func() {
			_, err := l.c.Mkdir(ctx, root, 1, fmt.Sprint(i), 0o755, 0)
			got <- err
		}()
	}
	kerneltest.Eventually(t, "loss", func() bool { return l.losses() == 1 })
	l.unanswered(maxUnanswered)
	l.back()
	within(t, "the answers", func() {
		for range callers {
			if err := <-got; err != nil {
				t.Errorf("mkdir: %v", err)
			}
		}
	})
	if list, err := os.ReadDir(dir); err != nil || len(list) != callers {
		t.Errorf("%d directories, %v", len(list), err)
	}
	l.stay()
	l.cutAt(wire.MsgFileGetAttr, 1)
	for range callers {
		go func() {
			_, err := l.c.GetAttr(ctx, 1)
			got <- err
		}()
	}
	go l.c.Release(1, 4711)
	kerneltest.Eventually(t, "loss", func() bool { return l.losses() == 2 })
	within(t, "the end", func() {
		_ = l.c.Close()
		for range callers {
			if err := <-got; !errors.Is(err, ErrLost) {
				t.Errorf("call of a closed client: %v", err)
			}
		}
	})
	if err := l.c.Attach(l.connect()); !errors.Is(err, ErrLost) {
		t.Errorf("attach after the end: %v", err)
	}
}

// TestStuck: senders that are blocked in a dead connection hold up neither the next connection nor the end.
func TestStuck(t *testing.T) {
	l := newLine(t, t.TempDir())
	_, err := l.c.GetAttr(ctx, 1)
	must(t, err)
	a, b := net.Pipe() // nobody reads
	defer b.Close()
	within(t, "attach", func() { must(t, l.c.Attach(wire.NewConn(a))) })
	got := make(chan error, 10)
	for range cap(got) {
		go func() {
			_, err := l.c.GetAttr(ctx, 1)
			got <- err
		}()
	}
	l.unanswered(cap(got))
	within(t, "attach", func() { must(t, l.c.Attach(l.connect())) })
	within(t, "answers", func() {
		for range cap(got) {
			if err := <-got; err != nil {
				t.Error(err)
			}
		}
	})
	a, b2 := net.Pipe()
	defer b2.Close()
	within(t, "attach", func() { must(t, l.c.Attach(wire.NewConn(a))) })
	go func() {
		_, err := l.c.GetAttr(ctx, 1)
		got <- err
	}()
	l.unanswered(1)
	within(t, "the end", func() {
		_ = l.c.Close()
		if err := <-got; !errors.Is(err, ErrLost) {
			t.Errorf("call of a closed client: %v", err)
		}
	})
}

// TestForgotten: the server remembers no more answers than it must, and a client that acknowledges nothing loses its connection.
func TestForgotten(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	for i := range 3000 {
		if _, err := l.c.Lookup(ctx, root, 1, "none"); !errors.Is(err, unix.ENOENT) {
			t.Fatalf("lookup %d: %v", i, err)
		}
	}
	l.s.sess.mu.Lock()
	n := len(l.s.sess.kept)
	l.s.sess.mu.Unlock()
	if n > 1 {
		t.Errorf("%d answers are kept for one that may be lost", n)
	}
	_, nc := serve(t, dir)
	c := wire.NewConn(nc)
	introduce(t, c)
	e := acked(1, root)
	e.String("none")
	for id := uint64(1); ; id++ {
		if id > 2*wire.MaxFileAcks {
			t.Fatal("it goes on for ever")
		}
		if err := c.Send(wire.MsgFileLookup, 0, id, e.B); err != nil {
			if id != wire.MaxFileAcks+2 {
				t.Errorf("request %d: %v", id, err)
			}
			break
		}
		if _, _, err := c.Recv(); err != nil {
			if id != wire.MaxFileAcks+1 {
				t.Errorf("request %d: %v", id, err)
			}
			break
		}
	}
}

// TestRandomCuts: several programs' worth of changes while connections are cut at any frame.
func TestRandomCuts(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	r := rand.New(rand.NewPCG(1, 2))
	l.mu.Lock()
	l.hook = func(bool, wire.Header) bool { return r.IntN(20) == 0 }
	l.mu.Unlock()
	const workers, rounds = 8, 120
	var wg sync.WaitGroup
	for g := range workers {
		wg.Go(func() {
			if err := work(l.c, g, rounds); err != nil {
				t.Errorf("worker %d: %v", g, err)
			}
		})
	}
	within(t, "the work", wg.Wait)
	l.mu.Lock()
	l.hook = nil
	lost := l.lost
	l.mu.Unlock()
	l.unanswered(0)
	_, err := l.c.GetAttr(ctx, 1) // acknowledges the rest
	must(t, err)
	for g := range workers {
		var want strings.Builder
		for i := range rounds {
			fmt.Fprintln(&want, g, i)
		}
		if b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("f", g))); err != nil || string(b) != want.String() {
			t.Errorf("worker %d wrote %.200q, %v", g, b, err)
		}
	}
	if s := l.s.Stats(); s.Nodes != 1 || s.Handles != 0 {
		t.Errorf("%d nodes and %d handles are left", s.Nodes, s.Handles)
	}
	if n := len(l.s.sess.kept); n != 0 {
		t.Errorf("%d answers are kept", n)
	}
	if lost < 50 {
		t.Errorf("only %d connections were lost", lost)
	}
}

// work makes a file of lines, with names that come and go beside it. Each error of an operation that must work is one that was done twice.
func work(c *Client, g, rounds int) error {
	name := fmt.Sprint("f", g)
	h, f, err := c.Create(ctx, root, 1, name, unix.O_WRONLY|unix.O_EXCL, 0o600, 0)
	if err != nil {
		return err
	}
	for i := range rounds {
		line := fmt.Appendln(nil, g, i)
		if n, err := c.Write(ctx, root, f.Node, h, 0, wire.FileWriteAppend, line); err != nil || n != len(line) {
			return fmt.Errorf("write %d: %d, %w", i, n, err)
		}
		tmp := fmt.Sprint("t", g)
		d, err := c.Mkdir(ctx, root, 1, tmp, 0o700, 0)
		if err != nil {
			return fmt.Errorf("mkdir %d: %w", i, err)
		}
		if err := c.Rename(ctx, root, 1, name, d.Node, "in", unix.RENAME_NOREPLACE); err != nil {
			return fmt.Errorf("rename %d: %w", i, err)
		}
		if _, err := c.Link(ctx, root, f.Node, 1, name); err != nil {
			return fmt.Errorf("link %d: %w", i, err)
		}
		if err := c.Unlink(ctx, root, d.Node, "in"); err != nil {
			return fmt.Errorf("unlink %d: %w", i, err)
		}
		if err := c.Rmdir(ctx, root, 1, tmp); err != nil {
			return fmt.Errorf("rmdir %d: %w", i, err)
		}
		c.Forget([]wire.FileForget{{Node: f.Node, Count: 1}, {Node: d.Node, Count: 1}}) // link's
	}
	c.Release(f.Node, h)
	c.Forget([]wire.FileForget{{Node: f.Node, Count: 1}})
	return nil
}
