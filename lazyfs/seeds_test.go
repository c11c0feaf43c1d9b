package lazyfs

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// teller is a source that counts lookups as a server does, and tells what the test wants.
type teller struct {
	Remote // what a test does not use

	mu       sync.Mutex
	lookups  map[uint64]int
	handles  map[uint64]bool // open
	contents string
	asked    int
	told     chan []wire.FileSeed // each answer to Seed; closed: an error
}

func newTeller() *teller {
	return &teller{lookups: map[uint64]int{}, handles: map[uint64]bool{}, told: make(chan []wire.FileSeed, 2)}
}

// seed is one that a server would tell: it counts.
func (s *teller) seed(name string, node uint64, mtime int64, handles ...uint64) wire.FileSeed {
	f := wire.FileSeed{Dir: 1, Name: name}
	if node == 0 {
		return f
	}
	f.Entry = wire.FileEntry{Node: node, Attr: wire.FileAttr{Size: 3, Mtime: wire.FileTime{Sec: mtime}, Mode: syscall.S_IFREG}}
	f.Data = []wire.FileRange{{Len: 3}}
	s.lookups[node]++
	for _, h := range handles {
		f.Handles = append(f.Handles, wire.FileOpened{Handle: h})
		s.handles[h] = true
	}
	return f
}

func (s *teller) Seed(context.Context, bool) ([]wire.FileSeed, error) {
	list, ok := <-s.told
	if !ok {
		return nil, &wire.Error{Errno: syscall.EIO}
	}
	return list, nil
}

func (s *teller) Lookup(_ context.Context, _ wire.FileCaller, _ uint64, name string) (wire.FileEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	node := uint64(name[0])
	s.lookups[node]++
	return wire.FileEntry{Node: node}, nil
}

func (s *teller) Forget(list []wire.FileForget) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range list {
		s.lookups[f.Node] -= int(f.Count)
	}
}

func (s *teller) GetAttr(context.Context, uint64) (wire.FileAttr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return wire.FileAttr{Size: 3}, nil
}

func (s *teller) Open(context.Context, wire.FileCaller, uint64, uint32) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	h := uint64(1000 + len(s.handles))
	s.handles[h] = true
	return h, nil
}

func (s *teller) Release(_, h uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.handles, h)
}

func (s *teller) Read(_ context.Context, _, _, off uint64, b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return copy(b, s.contents[min(off, uint64(len(s.contents))):]), nil
}

func (s *teller) Write(_ context.Context, _ wire.FileCaller, _, _, _ uint64, _ uint32, b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contents = string(b)
	return len(b), nil
}

// said is how often the source was asked since the last time.
func (s *teller) said() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.asked
	s.asked = 0
	return n
}

// frozen runs seeds up to the freeze: first is told before it, then at it. Nil: the source does not answer.
func (s *teller) frozen(t *testing.T, first, then []wire.FileSeed) *seeds {
	t.Helper()
	x := newSeeds(s)
	done := make(chan error, 1)
	go func() { done <- x.run(context.Background(), s, func() {}) }()
	s.told <- first
	waitFor(t, "what is told ahead", func() { <-x.ready })
	if then == nil {
		close(s.told)
	} else {
		s.told <- then
	}
	waitFor(t, "the freeze", func() { <-x.frozen })
	if err := <-done; (err != nil) != (then == nil) {
		t.Fatal(err)
	}
	return x
}

var ctx = context.Background()

func (s *seeds) contents(t *testing.T, node uint64) string {
	t.Helper()
	b := make([]byte, 10)
	n, err := s.Read(ctx, node, 1, 0, b)
	must(t, err)
	return string(b[:n])
}

// TestSeedsStale: nothing that was told while the tree ran is believed when it is no longer so at the freeze.
func TestSeedsStale(t *testing.T) {
	s := newTeller()
	s.contents = "old"
	x := s.frozen(t,
		[]wire.FileSeed{s.seed("a", 'a', 1, 1), s.seed("b", 'b', 1, 2), s.seed("c", 'c', 1, 3), s.seed("d", 0, 0), s.seed("e", 'e', 1, 4), s.seed("f", 'f', 1, 5)},
		[]wire.FileSeed{s.seed("b", 'b', 2), s.seed("c", 'C', 1), s.seed("d", 'd', 1), s.seed("e", 0, 0)})
	s.said()
	s.contents = "new"
	if got := x.contents(t, 'a'); got != "old" || s.said() != 0 {
		t.Errorf("a has not changed, and reads as %q", got)
	}
	for _, node := range []uint64{'b', 'c', 'e'} { // written; replaced; removed, and perhaps written by another name
		if got := x.contents(t, node); got != "new" {
			t.Errorf("%c reads as %q", rune(node), got)
		}
	}
	s.said()
	for name, node := range map[string]uint64{"a": 'a', "b": 'b', "c": 'C', "d": 'd', "e": 0} {
		e, err := x.Lookup(ctx, wire.FileCaller{}, 1, name)
		if told(err) == syscall.ENOENT {
			err = nil
		}
		must(t, err)
		if e.Node != node {
			t.Errorf("%s is node %d", name, e.Node)
		}
	}
	if n := s.said(); n != 0 {
		t.Errorf("%d lookups of names that were told", n)
	}
	if a, err := x.GetAttr(ctx, 'b'); err != nil || a.Mtime.Sec != 2 || s.said() != 0 {
		t.Errorf("attributes of b: %v, %v", a, err)
	}
	if _, err := x.GetAttr(ctx, 'c'); err != nil || s.said() != 1 { // it may have another name
		t.Error("attributes of what was replaced were not asked for")
	}
	h, err := x.Open(ctx, wire.FileCaller{}, 'a', syscall.O_APPEND)
	if err != nil || h != 1 || s.said() != 0 {
		t.Errorf("open: handle %d, %v", h, err)
	}
	if h, err = x.Open(ctx, wire.FileCaller{}, 'a', 0); err != nil || h < 1000 {
		t.Errorf("open once more: handle %d, %v", h, err)
	}
	if h, err = x.Open(ctx, wire.FileCaller{UID: 1}, 'b', 0); err != nil || h < 1000 {
		t.Errorf("open as somebody else: handle %d, %v", h, err)
	}
	x.granted()()
	if got := x.contents(t, 'a'); got != "old" {
		t.Errorf("a reads as %q after the grant", got)
	}
	_, err = (&changes{Remote: x, knowers: []knower{x}}).Write(ctx, wire.FileCaller{}, 'a', 1, 0, 0, []byte("own"))
	must(t, err)
	if got := x.contents(t, 'a'); got != "own" {
		t.Errorf("a reads as %q after a write", got)
	}
	if got := x.contents(t, 'f'); got != "old" {
		t.Errorf("f reads as %q after a write to another", got)
	}
	x.dropPages()
	if got := x.contents(t, 'f'); got != "own" {
		t.Errorf("f reads as %q when pages have been dropped", got)
	}
	s.said()
	if _, err := x.GetAttr(ctx, 'b'); err != nil || s.said() != 1 {
		t.Error("attributes are given out after the grant")
	}
}

// TestSeedsFail: when the source can't say what is different, nothing is known.
func TestSeedsFail(t *testing.T) {
	s := newTeller()
	s.contents = "old"
	x := s.frozen(t, []wire.FileSeed{s.seed("a", 'a', 1, 1)}, nil)
	s.contents = "new"
	s.said()
	if got := x.contents(t, 'a'); got != "new" {
		t.Errorf("a reads as %q", got)
	}
	if _, err := x.Lookup(ctx, wire.FileCaller{}, 1, "a"); err != nil || s.said() != 2 {
		t.Errorf("lookup was answered from what is not known: %v", err)
	}
}

// TestSeedsCount: whatever the kernel looks up and forgets, before and after the grant, the source's counts come out even.
func TestSeedsCount(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := newTeller()
		var first, then []wire.FileSeed
		for i := range uint64(5) {
			first = append(first, s.seed(string(rune('a'+i)), 'a'+i, 1, 10*i, 10*i+1))
		}
		for i := range uint64(3) {
			then = append(then, s.seed(string(rune('a'+i)), 'a'+i, int64(i), 10*i+2))
		}
		x := s.frozen(t, first, then)
		kernel := map[uint64]uint64{}
		var open []uint64
		step := func() {
			switch node := 'a' + r.Uint64N(7); r.IntN(4) {
			case 0, 1:
				e, err := x.Lookup(ctx, wire.FileCaller{}, 1, string(rune(node)))
				must(t, err)
				kernel[e.Node]++
			case 2:
				if n := kernel[node]; n > 0 { // all or a part
					k := 1 + r.Uint64N(n)
					kernel[node] -= k
					x.Forget([]wire.FileForget{{Node: node, Count: k}})
				}
			default:
				h, err := x.Open(ctx, wire.FileCaller{}, node, 0)
				must(t, err)
				open = append(open, h)
			}
			for node, n := range kernel {
				if s.lookups[node] < 1 && n > 0 {
					t.Fatalf("seed %d: the kernel knows node %c, the source has forgotten it", seed, rune(node))
				}
			}
		}
		for range r.IntN(40) {
			step()
		}
		x.granted()()
		for range r.IntN(40) {
			step()
		}
		for node, n := range kernel {
			x.Forget([]wire.FileForget{{Node: node, Count: n}})
		}
		for _, h := range open {
			x.Release(0, h)
		}
		for node, n := range s.lookups {
			if n != 0 {
				t.Errorf("seed %d: %d lookups of %c are left", seed, n, rune(node))
			}
		}
		if len(s.handles) > 0 {
			t.Errorf("seed %d: handles %v are left", seed, s.handles)
		}
	}
}

// TestSeedsMounted reads a program's libraries as a restore does: not one operation reaches the source.
func TestSeedsMounted(t *testing.T) {
	const lib = "/lib/x86_64-linux-gnu/libc.so.6" // below a link, and installed long ago
	data, err := os.ReadFile(filepath.Join("/usr", lib))
	must(t, err)
	r := newRigWith(t, false, helperConf{Src: "/usr", Store: t.TempDir(), Seeds: []remotefs.SeedPath{
		{Path: lib, Flags: []uint32{0, 0}, Data: true, Ranges: []wire.FileRange{{Len: uint64(len(data))}}},
		{Path: "/lib/none"},
		{Path: "/", Flags: []uint32{0}},
		{Path: "/share"},
	}})
	at := func(p string) string { return filepath.Join(r.mnt, p) }
	if _, err := os.Stat(at(lib)); err != nil { // while the tree runs
		t.Fatal(err)
	}
	r.say("seeded", "seeded")
	r.say("freeze", "frozen")
	before := r.say("waited", "waited")
	for range 2 {
		b, err := os.ReadFile(at(lib))
		must(t, err)
		if !bytes.Equal(b, data) {
			t.Error("contents differ")
		}
	}
	var st, want unix.Stat_t
	must(t, unix.Lstat(at("share"), &st))
	must(t, unix.Lstat("/usr/share", &want))
	if st.Mtim != want.Mtim || st.Mode != want.Mode || st.Nlink != want.Nlink {
		t.Errorf("attributes differ: %+v, %+v", st, want)
	}
	if _, err := os.Stat(at("/lib/none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a name that does not exist: %v", err)
	}
	d, err := os.Open(r.mnt)
	must(t, err)
	must(t, d.Close())
	if after := r.say("waited", "waited"); before != after {
		t.Errorf("%s, before: %s", after, before)
	}
	r.grant()
	b, err := os.ReadFile(at(lib))
	must(t, err)
	if !bytes.Equal(b, data) {
		t.Error("contents differ after the grant")
	}
}
