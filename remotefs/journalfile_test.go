package remotefs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// killAllAt is killAt without a standby: another server goes on with what is in a file. The tasks are the frozen tree's: in this test the "killed" server's own, which
// has its files open still.
func (l *line) killAllAt(n int, root string, tasks ...int) *killer {
	path := filepath.Join(l.t.TempDir(), "files")
	k := &killer{t: l.t, st: &Standby{}, gate: make(chan struct{}), n: -1}
	var err error
	k.file, err = l.server().NewJournalFile(path, func() {})
	must(l.t, err)
	l.t.Cleanup(k.file.Close)
	k.next = func() (*Standby, error) {
		st, lost, err := LoadJournal(path, Finder{Roots: []string{"/nowhere", "/", root}, Tasks: tasks})
		if len(lost) > 0 && len(tasks) > 0 {
			err = fmt.Errorf("lost: %q", lost)
		}
		return st, err
	}
	l.kill(k, n)
	return k
}

// TestAllKilled kills the server at each message that each operation writes to a journal in a file, with everybody who has its descriptors but the tree: nobody can
// tell afterwards.
func TestAllKilled(t *testing.T) {
	for name := range operations {
		t.Run(name, func(t *testing.T) {
			want := outcome(t, name, nil, nil, 0)
			for n := 0; ; n++ {
				var k *killer
				got := outcome(t, name, nil, func(l *line) { k = l.killAllAt(n, l.dir, os.Getpid()) }, 0)
				if got != want {
					t.Errorf("killed at message %d:\n%s\nwant\n%s", n, got, want)
				}
				if !k.killed() {
					break
				}
			}
		})
	}
}

// TestAllKilledNames: files are found by names that they got after they were opened, and what is gone, or another file by now, is not served.
func TestAllKilledNames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"renamed", "below/inside", "one", "replaced", "unlinked", "swap1", "swap2"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	l := newLine(t, dir)
	k := l.killAllAt(-1, dir)
	type open struct {
		ent wire.FileEntry
		h   uint64
	}
	at := func(dir uint64, name string) (o open) {
		var err error
		o.ent, err = l.c.Lookup(ctx, root, dir, name)
		must(t, err)
		if o.ent.Attr.Mode&unix.S_IFMT == unix.S_IFREG {
			o.h, err = l.c.Open(ctx, root, o.ent.Node, unix.O_RDWR)
			must(t, err)
		}
		return o
	}
	below := at(1, "below")
	files := map[string]open{"below/inside": at(below.ent.Node, "inside")}
	for _, name := range []string{"renamed", "one", "replaced", "unlinked", "swap1", "swap2"} {
		files[name] = at(1, name)
	}
	_, err := l.c.Link(ctx, root, files["one"].ent.Node, 1, "two")
	must(t, err)
	must(t, l.c.Unlink(ctx, root, 1, "one"))
	must(t, l.c.Rename(ctx, root, 1, "renamed", 1, "again", 0))
	must(t, l.c.Rename(ctx, root, 1, "again", below.ent.Node, "moved", 0))
	must(t, l.c.Rename(ctx, root, 1, "below", 1, "above", 0))
	must(t, l.c.Rename(ctx, root, 1, "swap1", 1, "swap2", unix.RENAME_EXCHANGE))
	must(t, l.c.Unlink(ctx, root, 1, "unlinked"))
	must(t, os.Remove(filepath.Join(dir, "replaced")))
	for i := range 100 { // one of them gets its inode number, on many file systems
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("other", i)), []byte("another's"), 0o644))
	}
	must(t, os.WriteFile(filepath.Join(dir, "replaced"), []byte("another's"), 0o644))
	lost := l.losses()
	k.mu.Lock()
	k.n = 0
	k.mu.Unlock()
	_, err = l.c.Lookup(ctx, root, 1, "two")
	must(t, err)
	kerneltest.Eventually(t, "another server", func() bool { return l.losses() > lost })
	for name, o := range files {
		b := make([]byte, 100)
		n, err := l.c.Read(ctx, o.ent.Node, o.h, 0, b)
		if slices.Contains([]string{"replaced", "unlinked"}, name) {
			wantErr(t, "read "+name, err, unix.ESTALE)
			continue
		}
		if err != nil || string(b[:n]) != name {
			t.Errorf("%s has %q, %v", name, b[:n], err)
		}
		n, err = l.c.Write(ctx, root, o.ent.Node, o.h, 0, wire.FileWriteAppend, []byte("more"))
		if err != nil || n != 4 {
			t.Errorf("write %s: %d, %v", name, n, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "above/moved"))
	if err != nil || string(b) != "renamedmore" {
		t.Errorf("%q was written, %v", b, err)
	}
}

// TestJournalFileLong: a journal that has become long says so once, and is replaced by one that is short.
func TestJournalFileLong(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	path := filepath.Join(t.TempDir(), "files")
	full := 0
	write := func() *JournalFile {
		j, err := l.s.NewJournalFile(path, func() { full++ })
		must(t, err)
		l.s.SetJournal(j, nil)
		return j
	}
	long := write()
	defer long.Close()
	long.mu.Lock()
	long.limit = long.size + 10_000
	long.mu.Unlock()
	for range 1000 {
		_, err := l.c.Lookup(ctx, root, 1, "none")
		wantErr(t, "lookup", err, unix.ENOENT)
	}
	if full != 1 {
		t.Errorf("it was told %d times", full)
	}
	defer write().Close()
	fi, err := os.Stat(path)
	if err != nil || fi.Size() > 5000 {
		t.Errorf("the new one: %v, %v", fi.Size(), err)
	}
	st, lost, err := LoadJournal(path, Finder{Roots: []string{dir}})
	if err != nil || len(lost) > 0 || !st.Whole() {
		t.Errorf("it can't be read: %v, %q", err, lost)
	}
	st.Close()
	b, err := os.ReadFile(path)
	must(t, err)
	for n := range len(b) { // torn anywhere, it is refused or what is whole is read
		must(t, os.WriteFile(path, b[:n], 0o600))
		if st, _, err := LoadJournal(path, Finder{Roots: []string{dir}}); err == nil {
			st.Close()
		}
	}
}
