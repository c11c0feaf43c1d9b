// Package fsmodel gives two directories the same operations, at random (Compare) or from a table (Table), and tells all that a program would see of them, for tests of file systems: one of them is
// a plain directory.
package fsmodel

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Dir is one of two directories that get the same operations.
type Dir struct {
	Root string
	fds  [4]int
}

// New makes the directory that the operations need.
func New(t testing.TB, root string) *Dir {
	t.Helper()
	d := &Dir{Root: root}
	for i := range d.fds {
		d.fds[i] = -1
	}
	if err := os.Mkdir(filepath.Join(root, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

// Close closes what is open.
func (d *Dir) Close() {
	for _, fd := range d.fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// Uncache makes the kernel forget the pages of all files that have not been written since.
func (d *Dir) Uncache() {
	forget := func(fd int) { _ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) } // a directory has none
	for _, fd := range d.fds {
		if fd >= 0 {
			forget(fd)
		}
	}
	for _, n := range names {
		fd, err := unix.Open(filepath.Join(d.Root, n), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
		if err == nil {
			forget(fd)
			_ = unix.Close(fd)
		}
	}
}

var names = []string{"a", "b", "c", "d/a", "d/b", "e", "e/a"}

// Step does one operation, chosen by r alone, and tells all that a program would see of it.
func (d *Dir) Step(r *rand.Rand) string {
	pick := func() string { return filepath.Join(d.Root, names[r.IntN(len(names))]) }
	p, q, fd := pick(), pick(), r.IntN(len(d.fds))
	n, off := r.IntN(9000), int64(r.IntN(20000))
	data := []byte(strings.Repeat(string(rune('A'+r.IntN(26))), n))
	flags := r.IntN(1 << 30)
	switch op := r.IntN(22); op {
	case 0, 1:
		_ = unix.Close(d.fds[fd])
		var err error
		fl := []int{unix.O_RDONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_APPEND, unix.O_RDWR | unix.O_APPEND}[flags%4]
		fl |= flags >> 3 & (unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC)
		d.fds[fd], err = unix.Open(p, fl|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o640)
		return fmt.Sprint("open ", errno(err))
	case 2, 3, 4:
		n, err := unix.Write(d.fds[fd], data)
		return fmt.Sprint("write ", n, errno(err))
	case 5:
		n, err := unix.Pwrite(d.fds[fd], data, off)
		return fmt.Sprint("pwrite ", n, errno(err))
	case 6, 7:
		b := make([]byte, n)
		n, err := unix.Pread(d.fds[fd], b, off)
		return fmt.Sprintf("pread %d %s %x", n, errno(err), b[:max(n, 0)])
	case 8:
		return "ftruncate " + errno(unix.Ftruncate(d.fds[fd], off))
	case 9:
		return "truncate " + errno(unix.Truncate(p, off))
	case 10:
		return "mkdir " + errno(unix.Mkdir(p, 0o750))
	case 11:
		return "rmdir " + errno(unix.Rmdir(p))
	case 12:
		return "unlink " + errno(unix.Unlink(p))
	case 13:
		return "rename " + errno(unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, uint(flags%3)))
	case 14:
		return "link " + errno(unix.Link(p, q))
	case 15:
		return "symlink " + errno(unix.Symlink("a", p))
	case 16:
		return "chmod " + errno(unix.Fchmod(d.fds[fd], uint32(flags%0o1000)))
	case 17:
		mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE}[flags%3]
		return "fallocate " + errno(unix.Fallocate(d.fds[fd], mode, off, int64(n)+1))
	case 18:
		var l []string
		ents, err := os.ReadDir(filepath.Dir(p))
		for _, e := range ents {
			l = append(l, e.Name()+e.Type().String())
		}
		return fmt.Sprint("readdir ", l, errno(err))
	case 19:
		return "stat " + d.stat(p)
	case 20:
		var st unix.Stat_t
		err := unix.Fstat(d.fds[fd], &st)
		return fmt.Sprint("fstat ", st.Mode, st.Size, st.Nlink, errno(err))
	default:
		b, err := os.ReadFile(p)
		return fmt.Sprintf("read %x %s", b, errno(err))
	}
}

func (d *Dir) stat(p string) string {
	st, err := os.Lstat(p)
	if err != nil {
		return errno(err)
	}
	s := st.Sys().(*syscall.Stat_t)
	size := s.Size
	if st.IsDir() {
		size = 0
	}
	return fmt.Sprint(st.Mode(), size, s.Nlink, s.Uid, s.Gid)
}

func errno(err error) string {
	var e unix.Errno
	if err == nil || !errors.As(err, &e) {
		return ""
	}
	return unix.ErrnoName(e)
}

// Compare gives a directory and a plain one steps that seed makes the same; before is called ahead of each. In the end source, which is what the directory shows, must
// have what the plain one has.
func Compare(t testing.TB, seed uint64, steps int, dir, source string, before func(d *Dir, step int)) {
	t.Helper()
	plain := t.TempDir()
	dirs := [2]*Dir{New(t, dir), New(t, plain)}
	var did []string
	for i := range steps {
		before(dirs[0], i)
		var got [2]string
		for k, d := range dirs {
			got[k] = d.Step(rand.New(rand.NewPCG(seed, uint64(i))))
		}
		did = append(did, fmt.Sprintf("%.100s", got[1]))
		if got[0] != got[1] {
			t.Fatalf("seed %d step %d:\nit says: %.300s\nplain: %.300s\nbefore: %q", seed, i, got[0], got[1], did[max(0, len(did)-30):])
		}
	}
	for _, d := range dirs {
		d.Close()
	}
	if a, b := Contents(t, source), Contents(t, plain); a != b {
		t.Fatalf("seed %d: source\n%s\nplain\n%s", seed, a, b)
	}
}

// Contents is a directory as far as it can be compared.
func Contents(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	d, files := &Dir{Root: dir}, os.DirFS(dir)
	if err := fs.WalkDir(files, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		fmt.Fprintln(&b, "/"+p, d.stat(filepath.Join(dir, p)))
		if e.Type().IsRegular() {
			c, err := fs.ReadFile(files, p)
			fmt.Fprintf(&b, "%x\n", c)
			return err
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
