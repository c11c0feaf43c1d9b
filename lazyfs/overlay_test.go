package lazyfs

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// tree tells everything of a directory that must not change before the grant.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		s := st.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&b, strings.TrimPrefix(p, dir), s.Ino, st.Mode(), s.Uid, s.Gid, s.Nlink, s.Size, s.Mtim, s.Ctim)
		if st.Mode().IsRegular() {
			c, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%q\n", c)
		}
		return nil
	}))
	return b.String()
}

func names(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	var n []string
	for _, e := range list {
		n = append(n, e.Name())
	}
	slices.Sort(n)
	return strings.Join(n, " ")
}

// bind makes a socket of the name, as the restore does.
func bind(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	// relative to the directory: paths of sockets are short
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(dir)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))}))
	return fd
}

func TestBeforeTheGrant(t *testing.T) {
	src := t.TempDir()
	write(t, filepath.Join(src, "file"), "contents")
	write(t, filepath.Join(src, "other"), "other")
	must(t, os.Mkdir(filepath.Join(src, "full"), 0o755))
	write(t, filepath.Join(src, "full/x"), "x")
	must(t, os.Mkdir(filepath.Join(src, "run"), 0o755))
	frozen := bind(t, filepath.Join(src, "sock")) // the frozen tree's, still listening
	must(t, unix.Listen(frozen, 1))
	must(t, os.Chmod(filepath.Join(src, "sock"), 0o700))
	before := tree(t, src)
	r := newRigWith(t, false, helperConf{Src: src, Store: t.TempDir(), Local: map[string][]byte{"/run/criu.kdat": []byte("kdat"), "/new/dir/f": []byte("f")}})
	at := func(p string) string { return filepath.Join(r.mnt, p) }

	// reading, and opening for writing, as for each descriptor of the tree
	has(t, at("file"), "contents")
	rw, err := os.OpenFile(at("file"), os.O_RDWR, 0)
	must(t, err)
	defer rw.Close()
	_, err = rw.WriteString("no")
	wantErr(t, "write", err, unix.EROFS)
	wantErr(t, "truncate", rw.Truncate(3), unix.EROFS)
	wantErr(t, "chmod", os.Chmod(at("file"), 0o600), unix.EROFS)
	must(t, os.Chmod(at("file"), 0o644)) // no change
	must(t, os.Chown(at("file"), 0, 0))
	wantErr(t, "setxattr", unix.Setxattr(at("file"), "user.x", nil, 0), unix.EROFS)
	wantErr(t, "utimes", os.Chtimes(at("file"), tm(1), tm(1)), unix.EROFS)
	wantErr(t, "fallocate", unix.Fallocate(int(rw.Fd()), 0, 0, 100), unix.EROFS)
	has(t, at("file"), "contents")

	// a socket is bound again: it is the source's node
	ino := func(p string) uint64 {
		st, err := os.Lstat(p)
		must(t, err)
		return st.Sys().(*syscall.Stat_t).Ino
	}
	was := ino(at("sock"))
	must(t, os.Remove(at("sock")))
	gone(t, at("sock"))
	if n := names(t, r.mnt); n != "file full new other run" {
		t.Fatalf("names %s", n)
	}
	sock := bind(t, at("sock"))
	must(t, unix.Listen(sock, 5))
	if ino(at("sock")) != was {
		t.Fatal("bound socket is another node than the source's")
	}
	must(t, os.Chmod(at("sock"), 0o700))

	// a file that was unlinked and open: made, written, given its name, opened, unlinked
	g, err := os.OpenFile(at("ghost"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	must(t, err)
	defer g.Close()
	_, err = g.WriteString(strings.Repeat("ghost", 10000))
	must(t, err)
	must(t, os.Chown(at("ghost"), 12, 34))
	must(t, os.Link(at("ghost"), at("deleted")))
	has(t, at("deleted"), strings.Repeat("ghost", 10000))
	must(t, os.Remove(at("ghost")))
	must(t, os.Remove(at("deleted")))
	// a linked remap of a file that the source has, and a renamed one
	must(t, os.Link(at("file"), at("link")))
	has(t, at("link"), "contents")
	must(t, os.Remove(at("link")))
	must(t, os.Rename(at("other"), at("moved")))
	has(t, at("moved"), "other")
	gone(t, at("other"))
	must(t, os.Rename(at("moved"), at("file"))) // over another
	has(t, at("file"), "other")
	must(t, unix.Renameat2(unix.AT_FDCWD, at("file"), unix.AT_FDCWD, at("full"), unix.RENAME_EXCHANGE))
	has(t, at("file/x"), "x")
	// directories
	must(t, os.MkdirAll(at("a/b"), 0o755))
	write(t, at("a/b/f"), "in it")
	wantErr(t, "rmdir", os.Remove(at("a/b")), unix.ENOTEMPTY)
	wantErr(t, "rmdir of the source's", unix.Rmdir(at("file")), unix.ENOTEMPTY)
	must(t, os.Rename(at("a/b/f"), at("run/f")))
	must(t, os.Remove(at("a/b")))
	has(t, at("run/f"), "in it")
	if n := names(t, at("run")); n != "criu.kdat f" {
		t.Fatalf("names in run: %s", n)
	}
	has(t, at("run/criu.kdat"), "kdat")
	has(t, at("new/dir/f"), "f")
	cwd := mustOpen(t, at("a"))
	must(t, os.Symlink("run/f", at("sym")))
	has(t, at("sym"), "in it")

	if after := tree(t, src); after != before {
		t.Fatalf("source changed before the grant:\n%s\nwas\n%s", after, before)
	}
	r.grant()

	if n := names(t, r.mnt); n != "file full other run sock" {
		t.Fatalf("names after the grant: %s", n)
	}
	if n := names(t, at("run")); n != "" {
		t.Fatalf("names in run after the grant: %s", n)
	}
	has(t, at("file"), "contents")
	has(t, at("other"), "other")
	has(t, at("full/x"), "x")
	if s := tree(t, r.src); s != before {
		t.Fatalf("source changed by the grant:\n%s\nwas\n%s", s, before)
	}
	// what was open goes on
	b := make([]byte, 50000)
	if n, err := g.ReadAt(b, 0); n != len(b) || string(b) != strings.Repeat("ghost", 10000) {
		t.Fatalf("unlinked file: %d bytes, %v", n, err)
	}
	_, err = g.WriteAt([]byte("more"), 50000)
	must(t, err)
	if st, err := g.Stat(); err != nil || st.Size() != 50004 || st.Sys().(*syscall.Stat_t).Uid != 12 || st.Sys().(*syscall.Stat_t).Nlink != 0 {
		t.Fatalf("unlinked file: %+v, %v", st.Sys(), err)
	}
	_, err = rw.WriteAt([]byte("CON"), 0)
	must(t, err)
	has(t, filepath.Join(src, "file"), "CONtents")
	st, err := rw.Stat()
	must(t, err)
	if st.Sys().(*syscall.Stat_t).Nlink != 1 {
		t.Fatalf("%d links", st.Sys().(*syscall.Stat_t).Nlink)
	}
	if _, err := cwd.ReadDir(-1); err != nil {
		t.Fatalf("directory without a name: %v", err)
	}
	wantErr(t, "create in it", unix.Mkdirat(int(cwd.Fd()), "x", 0o755), unix.ENOENT)
	// the name leads to the socket that was bound
	dir := mustOpen(t, r.mnt)
	c, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/sock", dir.Fd()))
	must(t, err)
	must(t, c.Close())
	fd, _, err := unix.Accept(sock)
	must(t, err)
	must(t, unix.Close(fd))
	write(t, at("run/criu.kdat"), "now the source's")
	has(t, filepath.Join(src, "run/criu.kdat"), "now the source's")
}
