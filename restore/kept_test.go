package restore

import (
	"log/slog"
	"os"
	"testing"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestKept: what the guardian keeps comes back under its numbers, more than one message holds, and without what was dropped. Only ends keep it from leaving.
func TestKept(t *testing.T) {
	kerneltest.Leaks(t)
	sock, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := fdpass.New(peer)
	if err != nil {
		t.Fatal(err)
	}
	g := &guardian{log: slog.Default(), kept: map[uint32]*os.File{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := newReceiver(theirs)
		for {
			m, files, err := r.next()
			if err != nil {
				return
			}
			m.from = theirs
			g.handle(m, files)
		}
	}()
	c := &Capsule{calls: map[uint64]chan answer{}, events: newEventQueue(), dead: make(chan struct{}), silent: make(chan struct{}), ctl: sock, log: slog.Default()}
	c.readers.Add(1)
	go c.read()
	t.Cleanup(func() {
		c.Abandon()
		<-done
		theirs.Close()
		for _, f := range g.kept {
			f.Close()
		}
	})
	names := map[uint32]string{}
	for n := range uint32(fdpass.MaxFiles + 6) {
		id := n
		if n >= 3 {
			id = KeepBeside + 2*n
		}
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		names[id] = f.Name()
		if err := c.Keep(t.Context(), id, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if err := c.Drop(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	delete(names, 1)
	kept, err := c.Kept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id, f := range kept {
		got, err := os.Stat(names[id])
		fi, ferr := f.Stat()
		if err != nil || ferr != nil || !os.SameFile(got, fi) {
			t.Errorf("%d is another file: %v, %v", id, err, ferr)
		}
		f.Close()
	}
	if len(kept) != len(names) {
		t.Errorf("%d come of %d", len(kept), len(names))
	}
	if n := g.ends(); n != 2 {
		t.Errorf("%d ends", n)
	}
}
