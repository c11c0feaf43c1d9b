package lazyfs

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestAttrsSee changes attributes, and link counts by names, from several sides, while others ask: they see all that was done before they asked.
func TestAttrsSee(t *testing.T) {
	const files = 6
	dir := t.TempDir()
	_, c := newSource(t, dir)
	a := newAttrs()
	top := &changes{Remote: c, knowers: []knower{a}}
	ctx, who := context.Background(), wire.FileCaller{}
	var nodes [files]uint64
	for i := range nodes {
		write(t, filepath.Join(dir, fmt.Sprint(i)), "x")
		e, err := c.Lookup(ctx, who, 1, fmt.Sprint(i))
		must(t, err)
		nodes[i] = e.Node
	}
	type state struct{ begun, done atomic.Int64 }
	var modes, links [files]state // versions: the mode, and an odd one has a second name
	var stop atomic.Bool
	var writers, readers sync.WaitGroup
	for i := range files {
		writers.Go(func() {
			for v := int64(1); !stop.Load(); v++ {
				var err error
				s := &modes[i]
				if i%2 == 0 {
					s.begun.Store(v)
					_, err = top.SetAttr(ctx, who, nodes[i], wire.FileSetAttr{Valid: wire.FileSetMode, Mode: uint32(v % 0o1000)})
				} else {
					s = &links[i]
					s.begun.Store(v)
					if v%2 == 1 {
						_, err = top.Link(ctx, who, nodes[i], 1, fmt.Sprint("l", i))
					} else {
						err = top.Unlink(ctx, who, 1, fmt.Sprint("l", i))
					}
				}
				if err != nil {
					t.Errorf("version %d of %d: %v", v, i, err)
					return
				}
				s.done.Store(v)
			}
		})
	}
	for n := range 3 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(n)))
			for range 4000 {
				i := r.IntN(files)
				s := &modes[i]
				if i%2 == 1 {
					s = &links[i]
				}
				least := s.done.Load()
				attr, err := a.ask(ctx, top, nodes[i], n == 0)
				if err != nil {
					t.Errorf("ask: %v", err)
					return
				}
				if least != s.begun.Load() || least == 0 {
					continue
				}
				if i%2 == 0 && attr.Mode&0o777 != uint32(least)%0o1000 || i%2 == 1 && attr.Nlink != uint32(1+least%2) {
					t.Errorf("file %d in version %d: mode %o, %d names", i, least, attr.Mode&0o777, attr.Nlink)
					return
				}
				a.read(nodes[i])
			}
		})
	}
	readers.Wait()
	stop.Store(true)
	writers.Wait()
}

// late is a source whose answer about a node is passed on after something else has happened.
type late struct {
	Remote
	meanwhile func()
}

func (l *late) GetAttr(ctx context.Context, node uint64) (wire.FileAttr, error) {
	a, err := l.Remote.GetAttr(ctx, node)
	if fn := l.meanwhile; fn != nil {
		l.meanwhile = nil
		fn()
	}
	return a, err
}

// TestAttrsLate: what changes while an answer is on its way makes it worthless, whether the change has ended by then or not.
func TestAttrsLate(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "x")
	_, c := newSource(t, dir)
	ctx, who := context.Background(), wire.FileCaller{}
	e, err := c.Lookup(ctx, who, 1, "f")
	must(t, err)
	for what, ch := range map[string]change{
		"attributes": {nodes: []uint64{e.Node}}, "its directory": {names: []nameKey{{e.Node, "x"}}}, "a name of a file that is not told": {leaves: true},
	} {
		for _, ends := range []bool{false, true} {
			a := newAttrs()
			l := &late{Remote: c}
			top := &changes{Remote: l, knowers: []knower{a}}
			var done func()
			l.meanwhile = func() {
				done = top.begin(ch)
				if ends {
					done()
				}
			}
			_, err := a.ask(ctx, top, e.Node, false)
			must(t, err)
			if _, ok := a.get(e.Node); ok {
				t.Errorf("%s: an answer from before the change is believed, ended %v", what, ends)
			}
			if !ends {
				done()
			}
			_, err = a.ask(ctx, top, e.Node, false)
			must(t, err)
			if _, ok := a.get(e.Node); !ok {
				t.Errorf("%s: nothing is believed any more", what)
			}
			top.begin(ch)()
			if _, ok := a.get(e.Node); ok {
				t.Errorf("%s: what was known before a change is believed after it", what)
			}
		}
	}
}

// TestStatAfterRead: that a file was read is no reason to ask the source for its attributes, unless its time of access moves by that.
func TestStatAfterRead(t *testing.T) {
	r := newRig(t, true)
	mkdir(t, r.src, "d")
	p := filepath.Join(r.src, "d/f")
	write(t, p, "contents")
	must(t, os.Chtimes(p, time.Now().Add(-48*time.Hour), tm(1e9)))
	at := filepath.Join(r.mnt, "d/f")
	atime := func() unix.Timespec {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Stat(at, &st))
		return st.Atim
	}
	old := atime()
	has(t, at, "contents") // moves it
	kerneltest.Eventually(t, "the time of access", func() bool { return atime() != old })
	f := mustOpen(t, at)
	defer f.Close()
	now, b := atime(), make([]byte, 4)
	trips := r.say("waited", "waited")
	for range 3 {
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if got := atime(); got != now {
			t.Errorf("time of access %v, then %v", now, got)
		}
	}
	if got := r.say("waited", "waited"); got != trips {
		t.Errorf("%s, before %s", got, trips)
	}
	must(t, os.Chmod(at, 0o600))
	if st, err := os.Stat(at); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}
