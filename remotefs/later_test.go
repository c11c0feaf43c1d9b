package remotefs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestOpenLater: what is opened without waiting goes out when the answer to any request has been passed on, or before the next request.
func TestOpenLater(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("contents"), 0o644))
	f, err := l.c.Lookup(ctx, root, 1, "f")
	must(t, err)
	open := func(n int) {
		t.Helper()
		kerneltest.Eventually(t, "open handles", func() bool { return l.server().Stats().Handles == n })
	}
	l.c.OpenAs(root, f.Node, wire.FileOwnHandle|1, unix.O_RDONLY, false)
	l.c.OpenAs(root, f.Node, wire.FileOwnHandle|2, unix.O_RDONLY, false)
	if n := l.c.Waiting(); n != 2 {
		t.Errorf("%d requests wait, not 2", n)
	}
	if n := l.server().Stats().Handles; n != 0 {
		t.Errorf("%d handles are open before anything was sent", n)
	}
	l.c.Settled(12345) // under which nothing was asked
	open(2)
	l.unanswered(0)
	l.c.OpenAs(root, f.Node, wire.FileOwnHandle|3, unix.O_RDONLY, false)
	l.c.Release(f.Node, wire.FileOwnHandle|1) // another's
	l.unanswered(0)
	open(2)
	b := make([]byte, 8)
	if n, err := l.c.Read(ctx, f.Node, wire.FileOwnHandle|3, 0, b); err != nil || string(b[:n]) != "contents" {
		t.Errorf("read %q, %v", b[:n], err)
	}

	// Without a connection it waits for the next one, and is not lost.
	l.stay()
	lost := l.losses()
	l.mu.Lock()
	nc := l.nc
	l.mu.Unlock()
	must(t, nc.Close())
	kerneltest.Eventually(t, "loss", func() bool { return l.losses() > lost })
	l.c.OpenAs(root, f.Node, wire.FileOwnHandle|4, unix.O_RDONLY, false)
	l.c.Settled(12346)
	l.back()
	open(3)
	l.unanswered(0)
}
