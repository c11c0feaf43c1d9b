package lazyfs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// kernelSide counts lookups as a kernel does, and checks that the source never counts less.
type kernelSide struct {
	x      *dirNames
	top    *changes // above x
	c      *remotefs.Client
	server *remotefs.Server

	mu     sync.Mutex
	counts map[uint64]uint64
	back   []wire.FileForget
}

func newKernelSide(t *testing.T, dir string) *kernelSide {
	t.Helper()
	k := &kernelSide{counts: map[uint64]uint64{}}
	k.server, k.c = newSource(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	k.x = newNames(ctx, k.c, func(node, n uint64) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.back = append(k.back, wire.FileForget{Node: node, Count: n})
	})
	k.top = &changes{Remote: k.x, knowers: []knower{k.x}}
	k.x.on = func() bool { return true }
	k.x.trip = 20 * time.Millisecond
	t.Cleanup(func() { cancel(); k.x.wg.Wait() })
	return k
}

func (k *kernelSide) counted(e wire.FileEntry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.counts[e.Node]++
}

func (k *kernelSide) lookup(dir uint64, name string) (wire.FileEntry, error) {
	e, err := k.x.Lookup(context.Background(), wire.FileCaller{}, dir, name)
	if err == nil {
		k.counted(e)
	}
	return e, err
}

// end forgets all: the source has nothing left then but the root.
func (k *kernelSide) end(t *testing.T) {
	t.Helper()
	k.x.wg.Wait()
	k.x.dropAll()
	for node := range k.counts {
		if _, err := k.c.GetAttr(context.Background(), node); errors.Is(err, syscall.ESTALE) {
			t.Errorf("node %d is gone at the source, and the kernel knows it", node)
		}
	}
	for node, n := range k.counts {
		k.c.Forget([]wire.FileForget{{Node: node, Count: n}})
	}
	k.c.Forget(k.back)
	if _, err := k.c.GetAttr(context.Background(), 1); err != nil { // after the forgets
		t.Error(err)
	}
	kerneltest.Eventually(t, "the source to forget", func() bool { return k.server.Stats().Nodes == 1 })
}

// TestNamesSee changes names and attributes from several sides, while others look: a lookup sees all that was done before it began.
func TestNamesSee(t *testing.T) {
	const owners, perOwner = 3, 8
	dir := t.TempDir()
	k := newKernelSide(t, dir)
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	for i := range 40 {
		write(t, filepath.Join(dir, "sub", fmt.Sprint("still", i)), "x")
	}
	ctx, who := context.Background(), wire.FileCaller{}
	sub, err := k.lookup(1, "sub")
	must(t, err)
	type state struct{ done, begun atomic.Int64 } // version: odd there, even not; mode is the version
	var states [owners * perOwner]state
	name := func(i int) string { return fmt.Sprint("n", i) }
	var stop atomic.Bool
	var writers, readers sync.WaitGroup
	for o := range owners {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(o)))
			for !stop.Load() {
				i := o*perOwner + r.IntN(perOwner)
				s := &states[i]
				v := s.begun.Add(1)
				var err error
				switch {
				case v%6 == 0: // by way of another name
					err = k.top.Rename(ctx, who, sub.Node, name(i), sub.Node, fmt.Sprint("away", o), 0)
					err = errors.Join(err, k.top.Unlink(ctx, who, sub.Node, fmt.Sprint("away", o)))
				case v%2 == 0:
					err = k.top.Unlink(ctx, who, sub.Node, name(i))
				default:
					var e wire.FileEntry
					if e, err = k.top.Mknod(ctx, who, sub.Node, name(i), unix.S_IFREG, 0, 0); err == nil {
						k.counted(e)
						_, err = k.top.SetAttr(ctx, who, e.Node, wire.FileSetAttr{Valid: wire.FileSetMode, Mode: uint32(v) % 0o1000})
					}
				}
				if err != nil {
					t.Errorf("name %d version %d: %v", i, v, err)
					return
				}
				s.done.Store(v)
			}
		})
	}
	for n := range 3 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(8, uint64(n)))
			for round := range 3000 {
				i := r.IntN(len(states))
				least := states[i].done.Load()
				if n == 0 && round%5 == 0 {
					k.x.list(ctx, sub.Node, true)
				}
				e, err := k.lookup(sub.Node, name(i))
				most := states[i].begun.Load()
				switch {
				case errors.Is(err, syscall.ENOENT):
					if least == most && least%2 == 1 {
						t.Errorf("name %d is not there in version %d", i, least)
						return
					}
				case err != nil:
					t.Errorf("lookup: %v", err)
					return
				case least == most && (least%2 == 0 || e.Attr.Mode&0o777 != uint32(least)%0o1000):
					t.Errorf("name %d in version %d: mode %o", i, least, e.Attr.Mode&0o777)
					return
				}
			}
		})
	}
	readers.Wait()
	stop.Store(true)
	writers.Wait()
	k.end(t)
}

// TestNamesTrips walks a tree whose names are asked for one after the other: few trips, and none for what is not there.
func TestNamesTrips(t *testing.T) {
	const dirs, files = 30, 20
	dir := t.TempDir()
	for d := range dirs {
		mkdir(t, dir, fmt.Sprint("d", d))
		for f := range files {
			write(t, filepath.Join(dir, fmt.Sprint("d", d), fmt.Sprint("f", f)), "x")
		}
	}
	k := newKernelSide(t, dir)
	before := k.server.Stats().Waited
	for d := range dirs {
		sub, err := k.lookup(1, fmt.Sprint("d", d))
		must(t, err)
		for f := range files {
			e, err := k.lookup(sub.Node, fmt.Sprint("f", f))
			must(t, err)
			if e.Attr.Size != 1 {
				t.Errorf("size %d", e.Attr.Size)
			}
			if _, err := k.lookup(sub.Node, fmt.Sprint("none", f)); !errors.Is(err, syscall.ENOENT) {
				t.Errorf("none: %v", err)
			}
		}
	}
	if n := k.server.Stats().Waited - before; n > 10 {
		t.Errorf("%d trips", n)
	}
	k.end(t)
}
