package remotefs

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

var (
	ctx  = context.Background()
	root = wire.FileCaller{}
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve starts a server of dir and gives the peer's end of a connection to it.
func serve(t testing.TB, dir string) (*Server, net.Conn) {
	t.Helper()
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	defer d.Close()
	s, err := NewServer(ServerOptions{Root: d, Groups: []uint32{4711}})
	must(t, err)
	a, b := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(ctx, wire.NewConn(a)) // ends with the connection, in one way or another
	}()
	t.Cleanup(func() {
		must(t, s.Close())
		must(t, s.Close())
		select {
		case <-served:
		case <-time.After(2 * time.Minute):
			t.Error("Serve does not end")
		}
		_ = b.Close()
	})
	return s, b
}

func client(t testing.TB, dir string) (*Server, *Client) {
	t.Helper()
	s, nc := serve(t, dir)
	c := NewClient(wire.NewConn(nc), ClientOptions{})
	t.Cleanup(func() { _ = c.Close() })
	return s, c
}

func wantErr(t *testing.T, what string, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestConfinement asks for what is not exported, in every way that the protocol has.
func TestConfinement(t *testing.T) {
	outer := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outer, "secret"), []byte("secret"), 0o644))
	dir := filepath.Join(outer, "root")
	must(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("data"), 0o644))
	must(t, os.Symlink("../secret", filepath.Join(dir, "rel")))
	must(t, os.Symlink(filepath.Join(outer, "secret"), filepath.Join(dir, "abs")))
	must(t, os.Symlink("/proc/self/root", filepath.Join(dir, "magic")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Mkdir(filepath.Join(dir, "proc"), 0o755))
	must(t, unix.Mount("proc", filepath.Join(dir, "proc"), "proc", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(dir, "proc"), unix.MNT_DETACH)) })
	s, c := client(t, dir)
	s.Grant()

	file, err := c.Lookup(ctx, root, 1, "file")
	must(t, err)
	sub, err := c.Lookup(ctx, root, 1, "sub")
	must(t, err)
	for _, name := range []string{"..", ".", "", "/", "../secret", "sub/../../secret", "a/b", "file\x00", "/etc/passwd"} {
		for what, fn := range map[string]func() error{
			"lookup":  func() error { _, err := c.Lookup(ctx, root, 1, name); return err },
			"mkdir":   func() error { _, err := c.Mkdir(ctx, root, 1, name, 0o755, 0); return err },
			"mknod":   func() error { _, err := c.Mknod(ctx, root, 1, name, unix.S_IFREG|0o644, 0, 0); return err },
			"symlink": func() error { _, err := c.Symlink(ctx, root, 1, name, "x"); return err },
			"unlink":  func() error { return c.Unlink(ctx, root, sub.Node, name) },
			"rmdir":   func() error { return c.Rmdir(ctx, root, sub.Node, name) },
			"rename":  func() error { return c.Rename(ctx, root, 1, name, 1, "new", 0) },
			"rename2": func() error { return c.Rename(ctx, root, 1, "file", 1, name, 0) },
			"link":    func() error { _, err := c.Link(ctx, root, file.Node, 1, name); return err },
			"create":  func() error { _, _, err := c.Create(ctx, root, 1, name, unix.O_RDWR, 0o644, 0); return err },
		} {
			wantErr(t, what+" "+name, fn(), unix.EINVAL)
		}
	}
	_, err = c.Lookup(ctx, root, 1, strings.Repeat("n", 256))
	wantErr(t, "long name", err, unix.ENAMETOOLONG)
	for _, l := range []string{"rel", "abs", "magic"} {
		e, err := c.Lookup(ctx, root, 1, l)
		must(t, err)
		if e.Attr.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Errorf("%s was followed: %o", l, e.Attr.Mode)
		}
		_, err = c.Lookup(ctx, root, e.Node, "etc")
		wantErr(t, "below "+l, err, unix.ENOTDIR)
		_, err = c.Open(ctx, root, e.Node, unix.O_RDONLY)
		wantErr(t, "open "+l, err, unix.EACCES)
		_, err = c.OpenDir(ctx, root, e.Node)
		wantErr(t, "opendir "+l, err, unix.ENOTDIR)
	}
	for _, n := range []string{"fifo", "null"} {
		e, err := c.Lookup(ctx, root, 1, n)
		must(t, err)
		_, err = c.Open(ctx, root, e.Node, unix.O_RDWR)
		wantErr(t, "open "+n, err, unix.EACCES)
		_, err = c.SetAttr(ctx, root, e.Node, wire.FileSetAttr{Valid: wire.FileSetSize})
		wantErr(t, "truncate "+n, err, unix.EINVAL)
	}
	proc, err := c.Lookup(ctx, root, 1, "proc")
	must(t, err)
	_, err = c.Lookup(ctx, root, proc.Node, "1")
	wantErr(t, "inside /proc", err, unix.ENOENT)
	h, err := c.OpenDir(ctx, root, proc.Node)
	must(t, err)
	if l, eof, err := c.ReadDir(ctx, proc.Node, h, 0, 1000, true); len(l) != 0 || !eof || err != nil {
		t.Errorf("/proc lists %v, %v", l, err)
	}
	// nodes and handles of others
	_, err = c.GetAttr(ctx, 4242)
	wantErr(t, "unknown node", err, unix.ESTALE)
	fh, err := c.Open(ctx, root, file.Node, unix.O_RDONLY)
	must(t, err)
	_, err = c.Read(ctx, sub.Node, fh, 0, make([]byte, 10))
	wantErr(t, "handle of another node", err, unix.EBADF)
	_, err = c.Read(ctx, proc.Node, h, 0, make([]byte, 10))
	wantErr(t, "read of a directory", err, unix.EBADF)
	_, _, err = c.ReadDir(ctx, file.Node, fh, 0, 1000, false)
	wantErr(t, "list of a file", err, unix.EBADF)
	_, err = c.Write(ctx, root, file.Node, fh, 0, 0, []byte("x"))
	wantErr(t, "write to what is open for reading", err, unix.EBADF)
	_, err = c.Read(ctx, file.Node, fh, 1<<63, make([]byte, 10))
	wantErr(t, "negative offset", err, unix.EINVAL)
	_, err = c.Lseek(ctx, file.Node, fh, 0, unix.SEEK_END)
	wantErr(t, "lseek", err, unix.EINVAL)
	wantErr(t, "whiteout", c.Rename(ctx, root, 1, "file", 1, "f2", unix.RENAME_WHITEOUT), unix.EINVAL)
	// a node that is forgotten too often stays away, the root never goes
	c.Forget([]wire.FileForget{{Node: sub.Node, Count: 1 << 60}, {Node: 1, Count: 1 << 60}, {Node: 999, Count: 1}})
	kerneltest.Eventually(t, "the node to be forgotten", func() bool { // there is no reply, and requests pass each other
		_, err = c.GetAttr(ctx, sub.Node)
		return wire.ErrnoOf(err) == unix.ESTALE
	})
	_, err = c.GetAttr(ctx, 1)
	must(t, err)
	if b, err := os.ReadFile(filepath.Join(outer, "secret")); err != nil || string(b) != "secret" {
		t.Errorf("outside: %q, %v", b, err)
	}
}

// TestGrant: nothing changes before it.
func TestGrant(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("data"), 0o644))
	s, c := client(t, dir)
	f, err := c.Lookup(ctx, root, 1, "f")
	must(t, err)
	h, err := c.Open(ctx, root, f.Node, unix.O_RDWR|unix.O_TRUNC|unix.O_CREAT) // truncation is another operation
	must(t, err)
	changes := map[string]func() error{
		"setattr": func() error {
			_, err := c.SetAttr(ctx, root, f.Node, wire.FileSetAttr{Valid: wire.FileSetMode, Mode: 0o600})
			return err
		},
		"symlink":     func() error { _, err := c.Symlink(ctx, root, 1, "l", "x"); return err },
		"mknod":       func() error { _, err := c.Mknod(ctx, root, 1, "n", unix.S_IFREG|0o600, 0, 0); return err },
		"mkdir":       func() error { _, err := c.Mkdir(ctx, root, 1, "d", 0o700, 0); return err },
		"link":        func() error { _, err := c.Link(ctx, root, f.Node, 1, "f2"); return err },
		"create":      func() error { _, _, err := c.Create(ctx, root, 1, "c", unix.O_RDWR, 0o600, 0); return err },
		"tmpfile":     func() error { _, _, err := c.Tmpfile(ctx, root, 1, unix.O_RDWR, 0o600, 0); return err },
		"write":       func() error { _, err := c.Write(ctx, root, f.Node, h, 0, 0, []byte("D")); return err },
		"stream":      func() error { return c.Stream(ctx, root, f.Node, h, 1, 0, []byte("A"), func() {}) },
		"fallocate":   func() error { return c.Fallocate(ctx, root, f.Node, h, 0, 0, 100) },
		"setxattr":    func() error { return c.SetXattr(ctx, root, f.Node, "user.x", []byte("v"), 0, false) },
		"removexattr": func() error { return c.RemoveXattr(ctx, root, f.Node, "user.x") },
		"copy":        func() error { _, err := c.CopyRange(ctx, root, f.Node, h, 0, f.Node, h, 10, 2); return err },
		"rename":      func() error { return c.Rename(ctx, root, 1, "c", 1, "r", 0) },
		"unlink":      func() error { return c.Unlink(ctx, root, 1, "r") },
		"remove":      func() error { return c.Remove(ctx, root, 1, "f", f.Node, f.Attr) },
		"rmdir":       func() error { return c.Rmdir(ctx, root, 1, "d") },
	}
	if len(changes) != countChanges() {
		t.Fatalf("%d operations are tested, %d change something", len(changes), countChanges())
	}
	for name, fn := range changes {
		wantErr(t, name, fn(), unix.EROFS)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "data" {
		t.Fatalf("file has %q, %v", b, err)
	}
	if l, err := os.ReadDir(dir); err != nil || len(l) != 1 {
		t.Fatalf("directory has %v, %v", l, err)
	}
	s.Grant()
	for _, name := range []string{
		"setattr", "symlink", "mknod", "mkdir", "link", "create", "tmpfile", "write", "stream", "fallocate", "setxattr",
		"removexattr", "copy", "rename", "unlink", "rmdir",
	} {
		if err := changes[name](); err != nil {
			t.Errorf("%s after the grant: %v", name, err)
		}
	}
	if st := s.Stats(); st.Operations == 0 || st.Bytes == 0 || st.Files != 3 {
		t.Errorf("stats %+v", st)
	}
}

func countChanges() (n int) {
	for _, o := range ops {
		if o.changes {
			n++
		}
	}
	return n
}

// acked is head behind the acknowledgement of nothing.
func acked(node uint64, who wire.FileCaller) *wire.Encoder {
	return &wire.Encoder{B: append([]byte{0, 0}, head(node, who).B...)}
}

// introduce begins a connection as some client.
func introduce(t testing.TB, c *wire.Conn) {
	t.Helper()
	must(t, c.Send(wire.MsgFileAttach, 0, 0, make([]byte, wire.FileSessionSize)))
	if h, _, err := c.Recv(); err != nil || h.Type != wire.MsgFileAttach+1 {
		t.Fatalf("introduction answered by %+v, %v", h, err)
	}
}

// TestMalformed: what no right client sends ends the connection, and nothing else.
func TestMalformed(t *testing.T) {
	for typ, o := range ops {
		for _, p := range [][]byte{nil, make([]byte, 9), {4, 1}, append(acked(1, root).B, make([]byte, 300)...)} {
			if (o.name == "write" || o.name == "forget") && len(p) > 100 {
				continue // bytes to write
			}
			s, nc := serve(t, t.TempDir())
			s.Grant()
			c := wire.NewConn(nc)
			must(t, nc.SetDeadline(time.Now().Add(2*time.Minute)))
			introduce(t, c)
			must(t, c.Send(typ, 0, 1, p))
			h, err := c.ReadHeader()
			if err == nil && h.Type == wire.MsgError {
				continue // refused for its contents
			}
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("%s with %d bytes: answer %d, %v", o.name, len(p), h.Type, err)
			}
		}
	}
}

// TestMountsInside: another file system below the root is served, with inode numbers of its own.
func TestMountsInside(t *testing.T) {
	dir := t.TempDir()
	m := filepath.Join(dir, "m")
	must(t, os.Mkdir(m, 0o755))
	must(t, unix.Mount("tmpfs", m, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { must(t, unix.Unmount(m, unix.MNT_DETACH)) })
	must(t, os.WriteFile(filepath.Join(m, "f"), []byte("x"), 0o644))
	var plain, inside unix.Stat_t
	must(t, unix.Stat(dir, &plain))
	must(t, unix.Stat(filepath.Join(m, "f"), &inside))
	_, c := client(t, dir)
	a, err := c.GetAttr(ctx, 1)
	must(t, err)
	if a.Ino != plain.Ino {
		t.Errorf("root's inode %d, want %d", a.Ino, plain.Ino)
	}
	e, err := c.Lookup(ctx, root, 1, "m")
	must(t, err)
	f, err := c.Lookup(ctx, root, e.Node, "f")
	must(t, err)
	if f.Attr.Ino != 1<<48^inside.Ino {
		t.Errorf("inode %x, want %x on device 1", f.Attr.Ino, inside.Ino)
	}
	h, err := c.OpenDir(ctx, root, e.Node)
	must(t, err)
	list, _, err := c.ReadDir(ctx, e.Node, h, 0, 4096, true)
	must(t, err)
	for _, x := range list {
		if x.Name == "f" && (x.Ino != f.Attr.Ino || x.Entry.Node != f.Node || x.Entry.Attr.Ino != f.Attr.Ino) {
			t.Errorf("listed as %+v, looked up as %+v", x, f)
		}
	}
}

// TestHold: descriptors are kept until the end.
func TestHold(t *testing.T) {
	dir := t.TempDir()
	s, _ := client(t, dir)
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	s.Hold([]*os.File{f})
	g, err := os.Open(filepath.Join(dir, "f"))
	must(t, err)
	defer g.Close()
	wantErr(t, "lock", unix.Flock(int(g.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	must(t, s.Close())
	must(t, unix.Flock(int(g.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

// TestPipelined: calls at the same time on one connection get their own answers.
func TestPipelined(t *testing.T) {
	dir := t.TempDir()
	data := []byte(strings.Repeat("0123456789abcdef", 64<<10/16))
	must(t, os.WriteFile(filepath.Join(dir, "f"), data, 0o644))
	_, c := client(t, dir)
	f, err := c.Lookup(ctx, root, 1, "f")
	must(t, err)
	h, err := c.Open(ctx, root, f.Node, unix.O_RDONLY)
	must(t, err)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				off := (g*7919 + i*104729) % len(data)
				b := make([]byte, 1+(g+1)*(i+1)%5000)
				n, err := c.Read(ctx, f.Node, h, uint64(off), b)
				want := data[off:min(off+len(b), len(data))]
				if err != nil || string(b[:n]) != string(want) {
					t.Errorf("read %d at %d: %d, %v", len(b), off, n, err)
				}
				if _, err := c.Lookup(ctx, root, 1, "no"); !errors.Is(err, unix.ENOENT) {
					t.Errorf("lookup: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// TestStaleBuffer: a reply longer than asked ends the connection instead of going anywhere.
func TestStaleBuffer(t *testing.T) {
	a, b := net.Pipe()
	c := NewClient(wire.NewConn(a), ClientOptions{})
	defer c.Close()
	go func() {
		w := wire.NewConn(b)
		_, _, _ = w.Recv() // the introduction; if it fails so does the next
		if h, _, err := w.Recv(); err == nil {
			_ = w.Send(wire.MsgFileRead+1, 0, h.ID, make([]byte, 100))
		}
	}()
	_, err := c.Read(ctx, 1, 2, 0, make([]byte, 10))
	if !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
	<-c.Done()
	_ = b.Close()
}
