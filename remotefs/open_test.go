package remotefs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestOpenAs uses handles before anybody has said that they are open: on the lane they are behind what opens them, whatever is worked at first.
func TestOpenAs(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("contents"), 0o644))
	f, err := l.c.Lookup(ctx, root, 1, "f")
	must(t, err)
	own := func(i int) uint64 { return wire.FileOwnHandle | uint64(i+1) }
	l.server().quiet.Lock() // requests are read, not begun
	type result struct {
		b   []byte
		err error
	}
	var results [50]chan result
	for i := range results {
		results[i] = make(chan result, 1)
	}
	const each = 12 // of them at once, with what opens and closes them
	for i := 0; i < len(results); i += each {
		for k := i; k < min(i+each, len(results)); k++ {
			l.c.OpenAs(root, f.Node, own(k), unix.O_RDONLY, false)
			go func() {
				b := make([]byte, 20)
				n, err := l.c.Read(ctx, f.Node, own(k), 0, b)
				results[k] <- result{b[:n], err}
			}()
		}
		kerneltest.Eventually(t, "requests under way", func() bool { return l.c.Waiting() == 2*min(each, len(results)-i) })
		l.server().quiet.Unlock()
		for k := i; k < min(i+each, len(results)); k++ {
			if got := <-results[k]; got.err != nil || string(got.b) != "contents" {
				t.Errorf("handle %d: %q, %v", k, got.b, got.err)
			}
			l.c.Release(f.Node, own(k))
		}
		l.unanswered(0)
		l.server().quiet.Lock()
	}
	l.server().quiet.Unlock()
	if s := l.server().Stats(); s.Handles != 0 {
		t.Errorf("%d handles are left", s.Handles)
	}

	// Released and forgotten before it is open; one that can't be opened; a node that does not exist; a name that is no client's.
	l.c.OpenAs(root, f.Node, own(100), unix.O_RDONLY, false)
	l.c.Release(f.Node, own(100))
	l.c.OpenAs(root, 1, own(101), unix.O_RDONLY, false)
	l.c.OpenAs(root, 999, own(102), unix.O_RDONLY, false)
	l.c.OpenAs(root, f.Node, 5, unix.O_RDONLY, false)
	l.c.OpenAs(root, f.Node, own(103), unix.O_RDWR, false)
	for h, want := range map[uint64]unix.Errno{own(101): unix.EACCES, own(102): unix.EBADF, 5: unix.EBADF, own(103): unix.EINVAL} {
		node := f.Node
		if h == own(101) {
			node = 1
		}
		if _, err := l.c.Read(ctx, node, h, 0, make([]byte, 1)); wire.ErrnoOf(err) != want {
			t.Errorf("handle %x: %v, want %v", h, err, want)
		}
		l.c.Release(node, h)
	}
	l.c.Forget([]wire.FileForget{{Node: f.Node, Count: 1}})
	l.unanswered(0)
	if s := l.server().Stats(); s.Handles != 0 || s.Nodes != 1 {
		t.Errorf("%d handles, %d nodes are left", s.Handles, s.Nodes)
	}
}
