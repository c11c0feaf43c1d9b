package lazyfs

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// newSource is a server of a directory and a client of it.
func newSource(t *testing.T, dir string) (*remotefs.Server, *remotefs.Client) {
	t.Helper()
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	defer root.Close()
	s, err := remotefs.NewServer(remotefs.ServerOptions{Root: root})
	must(t, err)
	s.Grant()
	a, b, err := socketPair()
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(context.Background(), wire.NewConn(a)) }) // ends with the client
	c := remotefs.NewClient(wire.NewConn(b), remotefs.ClientOptions{})
	t.Cleanup(func() {
		must(t, c.Close())
		wg.Wait()
		must(t, s.Close())
	})
	return s, c
}

// aheadRig is a file that is read ahead, without a mount.
func aheadRig(t *testing.T, size int) (s *remotefs.Server, r *aheadTop, node uint64) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), make([]byte, size), 0o644))
	s, c := newSource(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	a := newAhead(ctx, c)
	a.on = func() bool { return true }
	t.Cleanup(func() { cancel(); a.wg.Wait() })
	e, err := c.Lookup(ctx, wire.FileCaller{}, wire.FileRootNode, "f")
	must(t, err)
	a.knows(e.Node, &e.Attr)
	return s, &aheadTop{changes: &changes{Remote: a, knowers: []knower{a}}, ahead: a}, e.Node
}

// aheadTop is what is above ahead, and that itself.
type aheadTop struct {
	*changes
	ahead *ahead
}

func (a *aheadTop) openIn(t *testing.T, node uint64) uint64 {
	t.Helper()
	h, err := a.Open(context.Background(), wire.FileCaller{}, node, syscall.O_RDWR)
	must(t, err)
	return h
}

// TestAheadSees writes and reads a file from many sides: a read sees all that was written before it began.
func TestAheadSees(t *testing.T) {
	const block, blocks, piece = 4096, 2048, 16
	_, a, node := aheadRig(t, block*blocks)
	ctx := context.Background()
	var done, begun [blocks]atomic.Uint64
	var writers, readers sync.WaitGroup
	var stop atomic.Bool
	for w := range 2 {
		writers.Go(func() {
			r, h, b := rand.New(rand.NewPCG(1, uint64(w))), a.openIn(t, node), make([]byte, block)
			for !stop.Load() {
				i := r.IntN(blocks/2)*2 + w
				v := begun[i].Add(1)
				binary.BigEndian.PutUint64(b, v)
				if _, err := a.Write(ctx, wire.FileCaller{}, node, h, uint64(i*block), 0, b); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				done[i].Store(v)
			}
			a.Release(node, h)
		})
	}
	for n, step := range []int{piece, piece, 3 * piece, 5 * piece} {
		readers.Go(func() {
			h, b := a.openIn(t, node), make([]byte, piece*block)
			defer a.Release(node, h)
			for round := range 40 {
				for i := n % 2 * round % 7; i+piece <= blocks; i += step {
					var least [piece]uint64
					for k := range least {
						least[k] = done[i+k].Load()
					}
					got, err := a.Read(ctx, node, h, uint64(i*block), b)
					if err != nil || got != len(b) {
						t.Errorf("read: %d, %v", got, err)
						return
					}
					for k, v := range least {
						if have := binary.BigEndian.Uint64(b[k*block:]); have < v || have > begun[i+k].Load() {
							t.Errorf("block %d: version %d where %d was written and %d begun", i+k, have, v, begun[i+k].Load())
							return
						}
					}
				}
			}
		})
	}
	readers.Wait()
	stop.Store(true)
	writers.Wait()
}

// TestAheadGrows reads a file at its end while it grows: the end of a moment ago is not the end.
func TestAheadGrows(t *testing.T) {
	const block = 64 << 10
	_, a, node := aheadRig(t, 0)
	ctx := context.Background()
	w, r := a.openIn(t, node), a.openIn(t, node)
	b := make([]byte, block)
	for i := range 200 {
		for k := range b {
			b[k] = byte(i)
		}
		_, err := a.Write(ctx, wire.FileCaller{}, node, w, uint64(i*block), wire.FileWriteAppend, b)
		must(t, err)
		if n, err := a.Read(ctx, node, r, uint64(i*block), b); err != nil || n != block || b[0] != byte(i) || b[n-1] != byte(i) {
			t.Fatalf("block %d: %d bytes of %d, %v", i, n, b[0], err)
		}
		if n, err := a.Read(ctx, node, r, uint64((i+1)*block), b); err != nil || n != 0 {
			t.Fatalf("after block %d: %d bytes, %v", i, n, err)
		}
	}
	for size := 199 * block; size > 0; size -= 7 * block { // and shrinks
		_, err := a.SetAttr(ctx, wire.FileCaller{}, node, wire.FileSetAttr{Valid: wire.FileSetSize, Size: uint64(size)})
		must(t, err)
		if n, err := a.Read(ctx, node, r, uint64(size-block/2), b); err != nil || n != block/2 {
			t.Fatalf("at the end of %d: %d bytes, %v", size, n, err)
		}
	}
}

// TestAheadOnce reads a file in order and by steps, in small pieces: the source is asked for few, and for each byte once.
func TestAheadOnce(t *testing.T) {
	const size, piece = 16 << 20, 64 << 10
	for _, step := range []int{piece, 4 * piece} {
		s, a, node := aheadRig(t, size)
		h := a.openIn(t, node)
		before := s.Stats()
		b := make([]byte, piece)
		for off := 0; off < size; off += step {
			if n, err := a.Read(context.Background(), node, h, uint64(off), b); err != nil || n != piece {
				t.Fatalf("%d bytes, %v", n, err)
			}
		}
		a.ahead.wg.Wait()
		after := s.Stats()
		if asked := after.Bytes - before.Bytes; asked > size/uint64(step)*piece {
			t.Errorf("step %d: %d bytes were asked for", step, asked)
		}
		if n := after.Waited - before.Waited; n > size/uint64(min(step, aheadPiece))+4 {
			t.Errorf("step %d: %d requests", step, n)
		}
		a.Release(node, h)
		x := a.ahead
		x.mu.Lock()
		if x.bytes != 0 || len(x.files) > 0 || len(x.readers) > 0 {
			t.Errorf("step %d: %d bytes of %d files are left, %d readers", step, x.bytes, len(x.files), len(x.readers))
		}
		x.mu.Unlock()
	}
}
