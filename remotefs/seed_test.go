package remotefs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// seedTree is a directory whose files were changed long ago.
func seedTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	for _, name := range []string{"a/b/f", "a/b/same", "a/old"} {
		must(t, os.WriteFile(filepath.Join(dir, name), make([]byte, 3*seedChunk+5), 0o644))
	}
	must(t, os.Symlink("/a/b", filepath.Join(dir, "link")))
	return dir
}

// byName are seeds by their names, each of which must be told once.
func byName(t *testing.T, list []wire.FileSeed) map[string]wire.FileSeed {
	t.Helper()
	m := map[string]wire.FileSeed{}
	for _, f := range list {
		if _, twice := m[f.Name]; twice {
			t.Errorf("%q is told twice", f.Name)
		}
		m[f.Name] = f
	}
	return m
}

func names(m map[string]wire.FileSeed) []string {
	var list []string
	for n := range m {
		list = append(list, n)
	}
	slices.Sort(list)
	return list
}

// TestSeed tells a tree's names while it runs, and at the freeze what has changed; the replies are lost in between.
func TestSeed(t *testing.T) {
	dir := seedTree(t)
	l := newLine(t, dir)
	l.s.Seed([]SeedPath{
		{Path: "/", Flags: []uint32{0}},
		{Path: "/link/f", Flags: []uint32{0, unix.O_RDWR | unix.O_APPEND, 0}},
		{Path: "/a/b/same", Flags: []uint32{0}},
		{Path: "/a/old"},
		{Path: "/a/none/x"},
		{Path: "/a/b/../gone"},
	})
	l.cutAt(wire.MsgFileSeed+1, 1)
	list, err := l.c.Seed(ctx, false)
	must(t, err)
	first := byName(t, list)
	if got := names(first); !slices.Equal(got, []string{"", "a", "b", "f", "gone", "link", "none", "old", "same"}) {
		t.Errorf("told are %q", got)
	}
	if f := first["none"]; f.Entry.Node != 0 {
		t.Error("a name that does not exist has a node")
	}
	if f := first["link"]; f.Link != "/a/b" || f.Entry.Attr.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("link is told as %+v", f)
	}
	f := first["f"]
	if e, err := l.c.Lookup(ctx, root, first["b"].Entry.Node, "f"); err != nil || e.Node != f.Entry.Node {
		t.Errorf("lookup: node %d, %v; told was %d", e.Node, err, f.Entry.Node)
	}
	var flags []uint32
	for _, h := range f.Handles {
		flags = append(flags, h.Flags)
		if _, err := l.c.Read(ctx, f.Entry.Node, h.Handle, 0, make([]byte, 10)); err != nil {
			t.Errorf("read by a handle that was told: %v", err)
		}
	}
	if !slices.Equal(flags, []uint32{0, 0}) { // nothing for writing while the tree runs
		t.Errorf("opened with %v", flags)
	}
	if h := first[""].Handles; len(h) != 1 {
		t.Errorf("the root is open %d times", len(h))
	} else if _, _, err := l.c.ReadDir(ctx, 1, h[0].Handle, 0, 4096, false); err != nil {
		t.Errorf("read the root by a handle that was told: %v", err)
	}

	second := make(chan map[string]wire.FileSeed, 1)
	l.cutAt(wire.MsgFileSeed, 1)
	go func() {
		list, err := l.c.Seed(ctx, true)
		if err != nil {
			t.Error(err)
		}
		second <- byName(t, list)
	}()
	must(t, os.WriteFile(filepath.Join(dir, "a/b/f"), make([]byte, 3*seedChunk+5), 0o644)) // as long as before
	must(t, os.Remove(filepath.Join(dir, "a/old")))
	must(t, os.Mkdir(filepath.Join(dir, "a/none"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a/late"), nil, 0o644))
	l.s.Frozen([]SeedPath{{Path: "/a/b/same", Flags: []uint32{0, unix.O_WRONLY}}, {Path: "/a/late"}, {Path: "/a/b/f", Flags: []uint32{0, unix.O_RDWR}}})
	var changed map[string]wire.FileSeed
	within(t, "the answer to the freeze", func() { changed = <-second })
	if got := names(changed); !slices.Equal(got, []string{"a", "f", "late", "none", "old", "same"}) {
		t.Errorf("different at the freeze are %q", got)
	}
	if changed["old"].Entry.Node != 0 || changed["none"].Entry.Node == 0 || changed["late"].Entry.Node == 0 || changed["f"].Entry.Node != f.Entry.Node {
		t.Errorf("nodes at the freeze: %+v", changed)
	}
	if h := changed["f"].Handles; len(h) != 1 || h[0].Flags != unix.O_RDWR {
		t.Errorf("opened for writing at the freeze: %v", h)
	}
	if h := changed["same"].Handles; len(h) != 1 || h[0].Flags != unix.O_WRONLY {
		t.Errorf("opened at the freeze: %v", h)
	}

	// All can be given back.
	back := []wire.FileForget{{Node: f.Entry.Node, Count: 1}} // the lookup above
	for _, m := range []map[string]wire.FileSeed{first, changed} {
		for name, f := range m {
			for _, h := range f.Handles {
				l.c.Release(f.Entry.Node, h.Handle)
			}
			if f.Entry.Node != 0 && name != "" {
				back = append(back, wire.FileForget{Node: f.Entry.Node, Count: 1})
			}
		}
	}
	l.c.Forget(back)
	_, err = l.c.GetAttr(ctx, 1)
	must(t, err)
	l.unanswered(0)
	if st := l.s.Stats(); st.Nodes != 1 || st.Handles != 0 {
		t.Errorf("%d nodes and %d handles are left", st.Nodes, st.Handles)
	}
}

// TestSeedData: pages are told of files that nobody changes, and not of one that was changed a moment ago.
func TestSeedData(t *testing.T) {
	dir := seedTree(t)
	s, c := client(t, dir)
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(filepath.Join(dir, "a/b/f"), old, old)) // which changes the time of the change
	s.Seed([]SeedPath{{Path: "/a/b/f", Flags: []uint32{0}, Data: true}})
	list, err := c.Seed(ctx, false)
	must(t, err)
	if f := byName(t, list)["f"]; len(f.Data) != 0 {
		t.Errorf("pages of a file that has just been changed are told: %v", f.Data)
	}
	attr := wire.FileAttr{Mtime: wire.FileTime{Sec: old.Unix()}, Ctime: wire.FileTime{Sec: old.Unix()}}
	if !settled(&attr) {
		t.Error("a change an hour ago is not settled")
	}
	tell := &telling{s: s, r: &request{}, seen: map[seedKey]*wire.FileSeed{}}
	defer tell.close()
	n, err := tell.node(byName(t, list)["f"].Entry.Node)
	must(t, err)
	// All of it is in memory, as it has just been written.
	const size = 3*seedChunk + 5
	if got := tell.worth(n, size, nil); !slices.Equal(got, []wire.FileRange{{Len: size}}) {
		t.Errorf("worth: %v", got)
	}
	for _, r := range []wire.FileRange{{Off: 10, Len: 1}, {Off: 0, Len: 1 << 63}} {
		if got := tell.worth(n, size, []wire.FileRange{r}); !slices.Equal(got, []wire.FileRange{{Len: size}}) {
			t.Errorf("worth with range %v: %v", r, got)
		}
	}
	for _, r := range []wire.FileRange{{Off: 1 << 62, Len: 1}, {Off: ^uint64(0), Len: ^uint64(0)}, {Off: 5}} {
		if got := tell.worth(n, 5, []wire.FileRange{r}); !slices.Equal(got, []wire.FileRange{{Len: 5}}) {
			t.Errorf("worth with range %v: %v", r, got)
		}
	}
	far := []wire.FileRange{{Off: 20 * seedChunk, Len: 1}} // first what is sure, then the rest
	must(t, os.Truncate(filepath.Join(dir, "a/b/f"), 40*seedChunk))
	if got := tell.worth(n, 40*seedChunk, far); len(got) < 2 || got[0] != (wire.FileRange{Off: (20 - seedAround) * seedChunk, Len: (2*seedAround + 1) * seedChunk}) || got[1].Off != 0 {
		t.Errorf("worth with a range far behind: %v", got)
	}
}

// TestSeedEnd: a server that ends does not wait for the freeze.
func TestSeedEnd(t *testing.T) {
	s, c := client(t, t.TempDir())
	got := make(chan error, 1)
	go func() { _, err := c.Seed(ctx, true); got <- err }()
	_, err := c.GetAttr(ctx, 1) // the other is on its way
	must(t, err)
	within(t, "the server's end", func() { must(t, s.Close()) })
	within(t, "the answer", func() {
		if err := <-got; err == nil {
			t.Error("the freeze was told")
		}
	})
}
