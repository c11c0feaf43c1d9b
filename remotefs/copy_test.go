package remotefs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// TestDigest: holes count as the zeros that they read as, all else counts with its place.
func TestDigest(t *testing.T) {
	dir := t.TempDir()
	sum := func(name string, off, n int64, write func(f *os.File)) [wire.FileSumSize]byte {
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		defer f.Close()
		write(f)
		d, err := Digest(int(f.Fd()), off, n)
		must(t, err)
		return d
	}
	const mb = 1 << 20
	data := bytes.Repeat([]byte("0123456789abcdef"), 512) // two blocks
	at := func(size, off int64) func(f *os.File) {
		return func(f *os.File) {
			must(t, f.Truncate(size))
			_, err := f.WriteAt(data, off)
			must(t, err)
		}
	}
	full := func(f *os.File) {
		_, err := f.Write(make([]byte, 8*mb))
		must(t, err)
		at(8*mb, 3*mb)(f)
	}
	hole := sum("hole", 0, 8*mb, at(8*mb, 3*mb))
	if hole != sum("zeros", 0, 8*mb, full) {
		t.Error("a hole counts other than zeros")
	}
	if hole == sum("other", 0, 8*mb, at(8*mb, 3*mb+wire.FileBlock)) {
		t.Error("the place does not count")
	}
	if hole != sum("more", 0, 64*mb, at(8*mb, 3*mb)) {
		t.Error("a range that is longer than the file is another")
	}
	if sum("tail", 0, mb, at(9000, 5)) == sum("tail2", 0, mb, at(8197, 5)) {
		t.Error("the length of the last block does not count")
	}
	if huge := sum("huge", 0, 1<<40, at(1<<40, 3*mb)); huge != hole {
		t.Error("1 TB of holes count")
	}
}

// TestCopyOps asks for what a copier needs to know.
func TestCopyOps(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	p := filepath.Join(dir, "a/b/f (deleted)")
	f, err := os.Create(p)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(1<<30))
	_, err = f.WriteAt(make([]byte, 100), 1<<29)
	must(t, err)
	_, c := client(t, dir)
	node := uint64(wire.FileRootNode)
	for _, name := range []string{"a", "b", "f (deleted)"} {
		e, err := c.Lookup(ctx, root, node, name)
		must(t, err)
		node = e.Node
	}
	h, err := c.Open(ctx, root, node, unix.O_RDONLY)
	must(t, err)
	list, upTo, err := c.Extents(ctx, node, h, 0, 1<<30)
	must(t, err)
	if len(list) != 1 || list[0].Start > 1<<29 || list[0].End < 1<<29+100 || upTo != 1<<30 {
		t.Errorf("extents %v up to %d", list, upTo)
	}
	sum, a, _, err := c.Sum(ctx, node, h, 0, 64<<20)
	must(t, err)
	want, err := Digest(int(f.Fd()), 0, 64<<20)
	must(t, err)
	if sum != want || a.Size != 1<<30 {
		t.Errorf("sum %x of %d bytes, want %x", sum, a.Size, want)
	}
	_, _, _, err = c.Sum(ctx, node, h, 1, 4096)
	wantErr(t, "sum between blocks", err, unix.EINVAL)
	st, err := c.Stamps(ctx, []uint64{node, 1 << 40})
	must(t, err)
	if len(st) != 2 || st[0].Attr != a || st[1].Attr.Ino != 0 {
		t.Errorf("stamps %+v", st)
	}
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return nil }, "/a/b/f (deleted)"},
		{func() error { return os.Rename(filepath.Join(dir, "a/b"), filepath.Join(dir, "c")) }, "/c/f (deleted)"},
		{func() error { return os.Remove(filepath.Join(dir, "c/f (deleted)")) }, ""},
		{func() error { return os.WriteFile(filepath.Join(dir, "c/f (deleted)"), nil, 0o600) }, ""}, // another
	} {
		must(t, step.do())
		p, err := c.Path(ctx, node)
		if p != step.want || (err == nil) != (step.want != "") {
			t.Errorf("path %q, %v, want %q", p, err, step.want)
		}
	}
	if p, err := c.Path(ctx, wire.FileRootNode); p != "/" {
		t.Errorf("path of the root %q, %v", p, err)
	}
}
