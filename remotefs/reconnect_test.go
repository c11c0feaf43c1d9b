package remotefs

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// each is one operation on a fresh directory with a file "f" (node, open as h), a directory "d" (open as dh) and a link "l".
type each struct {
	dir   string
	c     *Client
	who   wire.FileCaller
	f, d  wire.FileEntry
	h, dh uint64
	link  uint64
}

var operations = map[string]func(e *each) (any, error){
	"lookup": func(e *each) (any, error) { x, err := e.c.Lookup(ctx, e.who, 1, "f"); return x.Node == e.f.Node, err },
	"seed":   func(e *each) (any, error) { x, err := e.c.Seed(ctx, false); return x, err },
	"tree": func(e *each) (any, error) {
		l, err := e.c.Tree(ctx, 1, 100, 100)
		var names []string
		for _, d := range l {
			for _, x := range d.Names {
				names = append(names, fmt.Sprint(d.Whole, x.Name, x.Entry.Attr.Size))
			}
		}
		slices.Sort(names)
		return names, err
	},
	"getattr": func(e *each) (any, error) { a, err := e.c.GetAttr(ctx, e.f.Node); return a.Size, err },
	"setattr": func(e *each) (any, error) {
		a, err := e.c.SetAttr(ctx, e.who, e.f.Node, wire.FileSetAttr{Valid: wire.FileSetSize, Size: 2})
		return a.Size, err
	},
	"readlink": func(e *each) (any, error) { b, err := e.c.Readlink(ctx, e.link); return string(b), err },
	"symlink":  func(e *each) (any, error) { x, err := e.c.Symlink(ctx, e.who, 1, "new", "x"); return x.Attr.Mode, err },
	"mknod": func(e *each) (any, error) {
		x, err := e.c.Mknod(ctx, e.who, 1, "new", unix.S_IFREG|0o600, 0, 0)
		return x.Attr.Mode, err
	},
	"mkdir": func(e *each) (any, error) {
		x, err := e.c.Mkdir(ctx, e.who, 1, "new", 0o700, 0)
		return x.Attr.Mode, err
	},
	"unlink": func(e *each) (any, error) { return nil, e.c.Unlink(ctx, e.who, 1, "f") },
	"rmdir":  func(e *each) (any, error) { return nil, e.c.Rmdir(ctx, e.who, 1, "d") },
	"rename": func(e *each) (any, error) {
		return nil, e.c.Rename(ctx, e.who, 1, "f", 1, "new", unix.RENAME_NOREPLACE)
	},
	"link": func(e *each) (any, error) {
		x, err := e.c.Link(ctx, e.who, e.f.Node, 1, "new")
		return x.Attr.Nlink, err
	},
	"open": func(e *each) (any, error) { h, err := e.c.Open(ctx, e.who, e.f.Node, 0); return h != 0, err },
	"read": func(e *each) (any, error) {
		b := make([]byte, 10)
		n, err := e.c.Read(ctx, e.f.Node, e.h, 1, b)
		return string(b[:n]), err
	},
	"read in bulk": func(e *each) (any, error) {
		b := make([]byte, 10)
		n, err := e.c.ReadBulk(ctx, e.f.Node, e.h, 1, b)
		return string(b[:n]), err
	},
	"write": func(e *each) (any, error) {
		n, err := e.c.Write(ctx, e.who, e.f.Node, e.h, 0, wire.FileWriteAppend, []byte("more"))
		return n, err
	},
	"stream": func(e *each) (any, error) {
		return nil, e.c.Stream(ctx, e.who, e.f.Node, e.h, 0, wire.FileWriteAppend, []byte("more"), func() {})
	},
	"statfs": func(e *each) (any, error) { s, err := e.c.Statfs(ctx, 1); return s.Bsize, err },
	"fsync":  func(e *each) (any, error) { return nil, e.c.Fsync(ctx, e.who, e.f.Node, e.h, true) },
	"setxattr": func(e *each) (any, error) {
		return nil, e.c.SetXattr(ctx, e.who, e.f.Node, "trusted.new", []byte("v"), unix.XATTR_CREATE, false)
	},
	"getxattr": func(e *each) (any, error) {
		_, v, err := e.c.GetXattr(ctx, e.f.Node, "trusted.x", 100)
		return string(v), err
	},
	"listxattr":   func(e *each) (any, error) { _, v, err := e.c.ListXattr(ctx, e.f.Node, 1000); return string(v), err },
	"removexattr": func(e *each) (any, error) { return nil, e.c.RemoveXattr(ctx, e.who, e.f.Node, "trusted.x") },
	"opendir":     func(e *each) (any, error) { h, err := e.c.OpenDir(ctx, e.who, 1); return h != 0, err },
	"readdir": func(e *each) (any, error) {
		l, eof, err := e.c.ReadDir(ctx, e.d.Node, e.dh, 0, 1000, true)
		return fmt.Sprint(len(l), eof), err
	},
	"create": func(e *each) (any, error) {
		_, x, err := e.c.Create(ctx, e.who, 1, "new", unix.O_RDWR|unix.O_EXCL, 0o600, 0)
		return x.Attr.Mode, err
	},
	"tmpfile": func(e *each) (any, error) {
		_, x, err := e.c.Tmpfile(ctx, e.who, 1, unix.O_RDWR, 0o600, 0)
		return x.Attr.Mode, err
	},
	"fallocate": func(e *each) (any, error) {
		return nil, e.c.Fallocate(ctx, e.who, e.f.Node, e.h, unix.FALLOC_FL_KEEP_SIZE, 0, 9000)
	},
	"lseek": func(e *each) (any, error) { return e.c.Lseek(ctx, e.f.Node, e.h, 0, unix.SEEK_HOLE) },
	"copy_file_range": func(e *each) (any, error) {
		return e.c.CopyRange(ctx, e.who, e.f.Node, e.h, 0, e.f.Node, e.h, 10, 2)
	},
	"extents": func(e *each) (any, error) {
		l, upTo, err := e.c.Extents(ctx, e.f.Node, e.h, 0, 100)
		return fmt.Sprint(l, upTo), err
	},
	"sum": func(e *each) (any, error) {
		sum, a, _, err := e.c.Sum(ctx, e.f.Node, e.h, 0, 100)
		return fmt.Sprint(sum, a.Size), err
	},
	"stamps": func(e *each) (any, error) {
		l, err := e.c.Stamps(ctx, []uint64{e.f.Node, e.d.Node})
		return len(l), err
	},
	"writers": func(e *each) (any, error) {
		l, err := e.c.Writers(ctx, []uint64{e.f.Node, e.d.Node})
		return len(l), err
	},
	"opens": func(e *each) (any, error) {
		l, err := e.c.Opens(ctx)
		return len(l), err
	},
	"remove": func(e *each) (any, error) { return nil, e.c.Remove(ctx, e.who, 1, "f", e.f.Node, e.f.Attr) },
	"scan": func(e *each) (any, error) {
		l, more, err := e.c.Scan(ctx, 1, "", "d", true)
		for i := range l {
			l[i].Attr = wire.FileAttr{} // has times
		}
		return fmt.Sprint(l, more), err
	},
	"path":   func(e *each) (any, error) { return e.c.Path(ctx, e.d.Node) },
	"forget": func(e *each) (any, error) { e.c.Forget([]wire.FileForget{{Node: e.d.Node, Count: 1}}); return nil, nil },
	"openas": func(e *each) (any, error) {
		e.c.OpenAs(e.who, e.f.Node, wire.FileOwnHandle|5, unix.O_RDONLY, false)
		e.c.OpenAs(e.who, e.d.Node, wire.FileOwnHandle|6, 0, true)
		b := make([]byte, 10)
		n, err := e.c.Read(ctx, e.f.Node, wire.FileOwnHandle|5, 1, b)
		if err != nil {
			return nil, err
		}
		_, eof, err := e.c.ReadDir(ctx, e.d.Node, wire.FileOwnHandle|6, 0, 1000, false)
		return fmt.Sprint(string(b[:n]), eof), err
	},
	"release": func(e *each) (any, error) { e.c.Release(e.f.Node, e.h); return nil, nil },
}

func typeOf(name string) wire.Type {
	for n, o := range ops {
		if o.name == name {
			return n
		}
	}
	return 0
}

// outcome is all that is seen of an operation: its result, the directory, and what the server holds.
func outcome(t *testing.T, name string, cut func(*line, wire.Type), kill func(*line), deaths int) string {
	dir := t.TempDir()
	l := newLine(t, dir)
	e := &each{dir: dir, c: l.c}
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("contents"), 0o644))
	must(t, unix.Setxattr(filepath.Join(dir, "f"), "trusted.x", []byte("value"), 0))
	must(t, os.Symlink("target", filepath.Join(dir, "l")))
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	if name == "readdir" {
		must(t, os.WriteFile(filepath.Join(dir, "d/x"), nil, 0o644))
	}
	var err error
	e.f, err = l.c.Lookup(ctx, root, 1, "f")
	must(t, err)
	e.d, err = l.c.Lookup(ctx, root, 1, "d")
	must(t, err)
	_, err = l.c.Lookup(ctx, root, 1, "d") // a second time: forget takes one of two
	must(t, err)
	ln, err := l.c.Lookup(ctx, root, 1, "l")
	must(t, err)
	e.link = ln.Node
	e.h, err = l.c.Open(ctx, root, e.f.Node, unix.O_RDWR)
	must(t, err)
	e.dh, err = l.c.OpenDir(ctx, root, e.d.Node)
	must(t, err)
	typ := typeOf(name)
	if cut != nil {
		cut(l, typ)
	}
	if kill != nil {
		kill(l)
	}
	var b strings.Builder
	for life := range deaths { // of clients, in the middle of the operation
		e.who.Number = 1000
		l.die(uint32(life+1), func() {
			if _, err := operations[name](e); !errors.Is(err, ErrLost) {
				t.Errorf("%s of a client that died: %v", name, err)
			}
		}, map[uint64]bool{1000: true})
		e.c = l.c
		cut(l, typ)
	}
	if deaths > 0 {
		l.cutAt(0, 0)
	}
	within(t, name, func() {
		v, err := operations[name](e)
		fmt.Fprintln(&b, v, unix.ErrnoName(wire.ErrnoOf(err)))
		l.unanswered(0)
	})
	if n := l.losses(); kill == nil && (n == 0) != (cut == nil) {
		t.Errorf("%d connections were lost", n)
	}
	l.settled(e.who.Number)
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(p, &st)
		}
		c, _ := os.ReadFile(p) // a directory has none
		x := make([]byte, 1000)
		n, _ := unix.Llistxattr(p, x) // a link has none
		fmt.Fprintf(&b, "%s %o %d %d %q %q\n", strings.TrimPrefix(p, dir), st.Mode, st.Nlink, st.Blocks, c, x[:max(n, 0)])
		return err
	}))
	s := l.server()
	s.tab.mu.Lock()
	defer s.tab.mu.Unlock()
	lookups := map[string]uint64{}
	for _, n := range s.tab.nodes {
		lookups[fmt.Sprintf("%o", n.mode)] += n.lookups
	}
	for _, k := range slices.Sorted(maps.Keys(lookups)) {
		fmt.Fprintln(&b, "lookups", k, lookups[k])
	}
	fmt.Fprintln(&b, "handles", len(s.tab.handles))
	return b.String()
}

// TestReplyLost loses the request or the reply of each operation, once and three times: nobody can tell afterwards.
func TestReplyLost(t *testing.T) {
	if len(operations) != len(ops) {
		t.Fatalf("%d operations are tested, there are %d", len(operations), len(ops))
	}
	for name := range operations {
		t.Run(name, func(t *testing.T) {
			want := outcome(t, name, nil, nil, 0)
			for n := range 4 {
				for what, d := range map[string]wire.Type{"request": 0, "reply": 1} {
					if n == 0 {
						continue
					}
					if got := outcome(t, name, func(l *line, typ wire.Type) { l.cutAt(typ+d, n) }, nil, 0); got != want {
						t.Errorf("%s lost %d times:\n%s\nwant\n%s", what, n, got, want)
					}
				}
			}
		})
	}
}

// TestErrorLost: a failure is told as it was the first time.
func TestErrorLost(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	for range 3 {
		l.cutAt(wire.MsgError, 2)
		_, err := l.c.Mkdir(ctx, root, 1, "d", 0o755, 0)
		wantErr(t, "mkdir", err, unix.EEXIST)
		l.cutAt(wire.MsgError, 1)
		wantErr(t, "unlink", l.c.Unlink(ctx, root, 1, "none"), unix.ENOENT)
	}
	l.cutAt(wire.MsgError, 1)
	lost := l.losses()
	got := make(chan error, 1)
	go func() { got <- l.c.Unlink(ctx, root, 1, "late") }()
	kerneltest.Eventually(t, "the connection to be lost", func() bool { return l.losses() > lost })
	must(t, os.WriteFile(filepath.Join(dir, "late"), nil, 0o644)) // possibly before the repeat
	within(t, "unlink", func() { wantErr(t, "unlink", <-got, unix.ENOENT) })
	if _, err := os.Stat(filepath.Join(dir, "late")); err != nil {
		t.Errorf("a repeat was done: %v", err)
	}
}

// TestRepeatWaits: the repeat of a request that is still at work waits for its answer.
func TestRepeatWaits(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	h, err := l.c.OpenDir(ctx, root, 1)
	must(t, err)
	hold, err := l.s.tab.handle(h)
	must(t, err)
	hold.dir.mu.Lock()
	seen := 0
	l.mu.Lock()
	l.hook = func(toServer bool, h wire.Header) bool {
		if h.Type == wire.MsgFileReadDir {
			seen++
		}
		return h.Type == wire.MsgFileStatfs+1 && seen == 1
	}
	l.mu.Unlock()
	before := l.s.Stats().Operations
	type result struct {
		n   int
		err error
	}
	got := make(chan result, 1)
	go func() {
		list, _, err := l.c.ReadDir(ctx, 1, h, 0, 1000, true)
		got <- result{len(list), err}
	}()
	kerneltest.Eventually(t, "the request to be at work", func() bool { return l.s.Stats().Operations == before+1 })
	if _, err := l.c.Statfs(ctx, 1); err != nil { // its reply cuts the connection; its repeat is answered while the other waits
		t.Fatal(err)
	}
	kerneltest.Eventually(t, "the repeat", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return seen == 2 })
	select {
	case r := <-got:
		t.Fatalf("answer %+v while it is at work", r)
	default:
	}
	hold.dir.mu.Unlock()
	within(t, "the answer", func() {
		if r := <-got; r.err != nil || r.n != 3 {
			t.Errorf("%+v", r)
		}
	})
	l.s.tab.putHandle(hold)
	if n := l.s.Stats().Operations - before; n != 3 { // readdir once, statfs twice
		t.Errorf("%d operations were done", n)
	}
	f, err := l.c.Lookup(ctx, root, 1, "f")
	must(t, err)
	l.c.Forget([]wire.FileForget{{Node: f.Node, Count: 2}}) // of readdir and of lookup
	l.unanswered(0)
	if n := l.s.Stats().Nodes; n != 1 {
		t.Errorf("%d nodes: an entry was counted twice", n)
	}
}

// TestReplaced: nothing is begun on a connection that has been replaced, however late it is read.
func TestReplaced(t *testing.T) {
	l := newLine(t, t.TempDir())
	must(t, l.c.Attach(l.connect())) // the connection before is alive and well
	_, err := l.c.GetAttr(ctx, 1)
	must(t, err)
	old := &serverLink{c: wire.NewConn(nil), gone: make(chan struct{})}
	if j, err := l.s.take(old, wire.Header{Type: wire.MsgFileMkdir, ID: 1}, acked(1, root).B); err == nil {
		t.Errorf("took %+v", j)
	}
	if n := l.losses(); n != 0 {
		t.Errorf("a connection that was replaced counts as lost, %d times", n)
	}
}

// TestSecondClient: one server, one client.
func TestSecondClient(t *testing.T) {
	l := newLine(t, t.TempDir())
	_, err := l.c.GetAttr(ctx, 1)
	must(t, err)
	c := NewClient(l.connect(), ClientOptions{Lost: func(err error) { t.Errorf("lost: %v", err) }})
	within(t, "a refusal", func() {
		_, err := c.GetAttr(ctx, 1)
		if !errors.Is(err, ErrLost) || !errors.Is(err, unix.EBUSY) {
			t.Errorf("second client: %v", err)
		}
		<-c.Done()
	})
	_ = c.Close()
	a, b := net.Pipe()
	defer b.Close()
	if err := c.Attach(wire.NewConn(a)); !errors.Is(err, ErrLost) {
		t.Errorf("attach after the end: %v", err)
	}
	if _, err := l.c.GetAttr(ctx, 1); err != nil {
		t.Errorf("first client: %v", err)
	}
}
