package remotefs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestStreamOrder sends appends to two files one after the other without waiting for any, and what must see them behind them, over connections that are cut: each
// file has them in their order, and what was behind them has seen them all.
func TestStreamOrder(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	type file struct {
		node, h uint64
		want    []byte
	}
	var files [2]file
	for i := range files {
		h, e, err := l.c.Create(ctx, root, 1, fmt.Sprint(i), unix.O_RDWR, 0o600, 0)
		must(t, err)
		files[i] = file{node: e.Node, h: h}
	}
	for round := range 8 {
		done := make(chan error, 100)
		l.cutAt(wire.MsgFileStream+wire.Type(round%2), 5+round) // after requests, or after answers
		l.server().quiet.Lock()                                 // requests are read, not begun
		n := 0
		for i := range 40 {
			f := &files[i%2]
			b := fmt.Appendf(nil, "line %d of round %d\n", i, round)
			f.want = append(f.want, b...)
			sent := make(chan struct{})
			n++
			go func() {
				done <- l.c.Stream(ctx, root, f.node, f.h, 0, wire.FileWriteAppend, b, func() { close(sent) })
			}()
			<-sent
		}
		for i := range files {
			f := &files[i]
			n += 2
			go func() {
				a, err := l.c.GetAttr(ctx, f.node)
				if err == nil && a.Size != uint64(len(f.want)) {
					err = fmt.Errorf("file of %d bytes, want %d", a.Size, len(f.want))
				}
				done <- err
			}()
			go func() {
				b := make([]byte, len(f.want)+100)
				k, err := l.c.Read(ctx, f.node, f.h, 0, b)
				if err == nil && !bytes.Equal(b[:k], f.want) {
					err = fmt.Errorf("read %q", b[:k])
				}
				done <- err
			}()
		}
		kerneltest.Eventually(t, "requests under way", func() bool { return l.c.Waiting() == n })
		l.server().quiet.Unlock()
		for range n {
			within(t, "answers", func() {
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		}
	}
	for i := range files {
		if b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i))); err != nil || !bytes.Equal(b, files[i].want) {
			t.Errorf("file %d: %q, %v", i, b, err)
		}
	}
}

// TestStreamTaken: a write gets its place when it is taken. If its connection is replaced just then, it comes again, and others after it, on the next one:
// it must not wait for those, which wait for it.
func TestStreamTaken(t *testing.T) {
	l := newLine(t, t.TempDir())
	_, err := l.c.GetAttr(ctx, wire.FileRootNode) // its own connection has been introduced
	must(t, err)
	s := l.server()
	var links [2]*serverLink
	for i := range links {
		links[i] = &serverLink{gone: make(chan struct{})}
	}
	take := func(l *serverLink, id uint64) *job {
		t.Helper()
		s.sess.mu.Lock()
		s.sess.cur, s.sess.known = l, true
		if s.sess.kept == nil {
			s.sess.kept = map[uint64]*keptAnswer{}
		}
		s.sess.mu.Unlock()
		e := &wire.Encoder{}
		e.U16(0)
		e.U64(4711)
		j, err := s.take(l, wire.Header{Type: wire.MsgFileStream, ID: id}, e.B)
		must(t, err)
		return j
	}
	first, again, second := take(links[0], 1), take(links[1], 1), take(links[1], 2)
	s.order(first) // what else is done with a request that was read
	if first.after != nil {
		t.Error("the first write waits for others")
	}
	if again.kept != first.kept || second.after != (<-chan struct{})(first.kept.done) {
		t.Error("the second write does not wait for the first")
	}
}

// TestStreamError: a streamed write that fails says so, also where a part of it could be done.
func TestStreamError(t *testing.T) {
	l := newLine(t, t.TempDir())
	h, e, err := l.c.Create(ctx, root, 1, "f", unix.O_RDWR, 0o600, 0)
	must(t, err)
	if err := l.c.Stream(ctx, root, e.Node, h, 1<<62, 0, []byte("far"), func() {}); wire.ErrnoOf(err) != unix.EFBIG && wire.ErrnoOf(err) != unix.EINVAL {
		t.Errorf("write too far: %v", err)
	}
	if err := l.c.Stream(ctx, root, e.Node, 4711, 0, 0, []byte("x"), func() {}); wire.ErrnoOf(err) != unix.EBADF {
		t.Errorf("write to no handle: %v", err)
	}
	if a, err := l.c.GetAttr(ctx, e.Node); err != nil || a.Size != 0 {
		t.Errorf("file of %d bytes, %v", a.Size, err)
	}
}

// TestStreamHung: writes that wait for one that does not come to its end, and what waits for them, leave places to others; cut off, too.
func TestStreamHung(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	h, e, err := l.c.Create(ctx, root, 1, "hangs", unix.O_RDWR, 0o600, 0)
	must(t, err)
	_, other, err := l.c.Create(ctx, root, 1, "goes", unix.O_RDWR, 0o600, 0)
	must(t, err)
	hung := &keptAnswer{done: make(chan struct{})}
	c := &l.server().chain
	c.mu.Lock()
	c.tails = map[uint64]*keptAnswer{e.Node: hung}
	c.mu.Unlock()
	l.cutAt(wire.MsgFileStream, 2*maxInFlight)
	const writes = 2*maxInFlight + 10
	done := make(chan error, writes+1)
	var want []byte
	for i := range writes {
		b := fmt.Appendf(nil, "line %d\n", i)
		want = append(want, b...)
		sent := make(chan struct{})
		go func() {
			done <- l.c.Stream(ctx, root, e.Node, h, 0, wire.FileWriteAppend, b, func() { close(sent) })
		}()
		within(t, "a write to be sent", func() { <-sent })
	}
	go func() {
		a, err := l.c.GetAttr(ctx, e.Node)
		if err == nil && a.Size != uint64(len(want)) {
			err = fmt.Errorf("file of %d bytes, want %d", a.Size, len(want))
		}
		done <- err
	}()
	within(t, "what another file is asked for", func() {
		if _, err := l.c.GetAttr(ctx, other.Node); err != nil {
			t.Error(err)
		}
	})
	close(hung.done)
	for range writes + 1 {
		within(t, "answers", func() {
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	if b, err := os.ReadFile(filepath.Join(dir, "hangs")); err != nil || !bytes.Equal(b, want) {
		t.Errorf("file: %q, %v", b, err)
	}
	if c.mu.Lock(); c.aside != 0 {
		t.Errorf("%d writes wait", c.aside)
	}
	c.mu.Unlock()
}
