package lazyfs

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// hanger is a source that does not come to an end with the writes to one file, as one whose own file system hangs.
type hanger struct {
	*remotefs.Client
	mu   sync.Mutex
	on   bool
	node uint64 // 0: the next that is written to
	held []*heldWrite
}

type heldWrite struct{ begin, sent chan struct{} }

func (g *hanger) Stream(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte, sent func()) error {
	g.mu.Lock()
	if g.on && g.node == 0 {
		g.node = node
	}
	if !g.on || g.node != node {
		g.mu.Unlock()
		return g.Client.Stream(ctx, who, node, h, off, flags, b, sent)
	}
	x := &heldWrite{make(chan struct{}), make(chan struct{})}
	g.held = append(g.held, x)
	g.mu.Unlock()
	sent()
	select {
	case <-x.begin:
	case <-ctx.Done():
		return ctx.Err()
	}
	return g.Client.Stream(ctx, who, node, h, off, flags, b, func() { close(x.sent) })
}

// end lets go on what hangs, in its order.
func (g *hanger) end() {
	for {
		g.mu.Lock()
		if len(g.held) == 0 {
			g.on, g.node = false, 0
			g.mu.Unlock()
			return
		}
		x := g.held[0]
		g.held = g.held[1:]
		g.mu.Unlock()
		close(x.begin)
		<-x.sent
	}
}

// TestStreamHung: a file that hangs at the source stops its own writers, once the window is full, and nobody else.
func TestStreamHung(t *testing.T) {
	r := newRigWith(t, true, helperConf{Src: t.TempDir(), Store: t.TempDir()})
	var files [2]*os.File
	for i, n := range []string{"hangs", "goes"} {
		f, err := os.Create(filepath.Join(r.mnt, n))
		must(t, err)
		defer f.Close()
		r.streams(f, []byte("0"))
		must(t, f.Sync())
		files[i] = f
	}
	hangs, goes := files[0], files[1]
	r.awaitRooms(2)
	r.say("hang", "hangs")
	piece := bytes.Repeat([]byte("hangs!!\n"), 8<<10)
	for i := range 4 * streamRequests { // the window has room for them
		_, err := hangs.WriteAt(piece[:8], int64(8*i))
		must(t, err)
	}
	write := func(s string) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			for i := range 2 * streamRequests {
				if _, err := goes.WriteAt([]byte(s), int64(len(s)*i)); err != nil {
					done <- err
					return
				}
			}
			done <- goes.Sync()
		}()
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(time.Minute):
			t.Error("a file that hangs stops others")
			r.say("let", "lets")
			t.FailNow()
		}
		has(t, filepath.Join(r.src, "goes"), string(bytes.Repeat([]byte(s), 2*streamRequests)))
	}
	write("before ")
	before, _, _ := r.streamed()
	full := make(chan error, 1)
	go func() {
		for i := range 2 * windowSize / len(piece) {
			if _, err := hangs.WriteAt(piece, int64(i*len(piece))); err != nil {
				full <- err
				return
			}
		}
		full <- hangs.Sync()
	}()
	kerneltest.Eventually(t, "the window to be full", func() bool {
		n, _, _ := r.streamed()
		return n-before > windowSize/len(piece)*9/10
	})
	write("behind!")
	r.say("let", "lets")
	select {
	case err := <-full:
		must(t, err)
	case <-time.After(2 * time.Minute):
		t.Fatal("what has hung does not go on")
	}
	has(t, filepath.Join(r.src, "hangs"), string(bytes.Repeat(piece, 2*windowSize/len(piece))))
}
