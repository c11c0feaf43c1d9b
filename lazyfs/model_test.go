package lazyfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// modelDir is one of two directories that get the same operations: the mount, and a plain one.
type modelDir struct {
	root string
	fds  [4]int
}

// step does one operation, chosen by r alone, and tells all that a program would see of it.
func (d *modelDir) step(r *rand.Rand) string {
	names := []string{"a", "b", "c", "d/a", "d/b", "e", "e/a"}
	pick := func() string { return filepath.Join(d.root, names[r.IntN(len(names))]) }
	p, q, fd := pick(), pick(), r.IntN(len(d.fds))
	n, off := r.IntN(9000), int64(r.IntN(20000))
	data := []byte(strings.Repeat(string(rune('A'+r.IntN(26))), n))
	flags := r.IntN(1 << 30)
	errno := func(err error) string { return unix.ErrnoName(asErrno(err)) }
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

func (d *modelDir) stat(p string) string {
	st, err := os.Lstat(p)
	if err != nil {
		return unix.ErrnoName(asErrno(err))
	}
	s := st.Sys().(*syscall.Stat_t)
	size := s.Size
	if st.IsDir() {
		size = 0
	}
	return fmt.Sprint(st.Mode(), size, s.Nlink, s.Uid, s.Gid)
}

// TestModel gives the mount and a plain directory the same random operations: a program must not see a difference.
func TestModel(t *testing.T) {
	for seed := range uint64(6) {
		model(t, seed, newRig(t, true), func(int) {})
	}
}

// TestModelCut is TestModel with connections that are lost all the time, after any byte.
func TestModelCut(t *testing.T) {
	for seed := range uint64(4) {
		r := newRigWith(t, true, helperConf{Src: t.TempDir(), Store: t.TempDir(), Cuts: seed + 1})
		model(t, seed+100, r, func(int) {})
		var n int
		if _, err := fmt.Sscanf(r.say("lost", "lost"), "lost %d", &n); err != nil || n < 10 {
			t.Errorf("seed %d: %d connections were lost, %v", seed, n, err)
		}
	}
}

func model(t *testing.T, seed uint64, r *rig, before func(step int)) {
	t.Helper()
	plain := t.TempDir()
	dirs := [2]*modelDir{{root: r.mnt}, {root: plain}}
	for _, d := range dirs {
		for i := range d.fds {
			d.fds[i] = -1
		}
		mkdir(t, d.root, "d")
	}
	var did []string
	for i := range 1500 {
		before(i)
		var got [2]string
		for k, d := range dirs {
			got[k] = d.step(rand.New(rand.NewPCG(seed, uint64(i))))
		}
		did = append(did, fmt.Sprintf("%.100s", got[1]))
		if got[0] != got[1] {
			t.Fatalf("seed %d step %d:\nmount: %.300s\nplain: %.300s\nbefore: %q", seed, i, got[0], got[1], did[max(0, len(did)-30):])
		}
	}
	for _, d := range dirs {
		for _, fd := range d.fds {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
		}
	}
	a, b := contents(t, r.src), contents(t, plain)
	if a != b {
		t.Fatalf("seed %d: source\n%s\nplain\n%s", seed, a, b)
	}
}

// contents is a directory as far as it can be compared.
func contents(t *testing.T, dir string) string {
	var b strings.Builder
	d := &modelDir{root: dir}
	must(t, filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		fmt.Fprintln(&b, strings.TrimPrefix(p, dir), d.stat(p))
		if e.Type().IsRegular() {
			c, err := os.ReadFile(p)
			fmt.Fprintf(&b, "%x\n", c)
			return err
		}
		return nil
	}))
	return b.String()
}

func TestReadahead(t *testing.T) {
	r := newRig(t, true)
	var st unix.Stat_t
	must(t, unix.Stat(r.mnt, &st))
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if major*100+minor < 616 {
		t.Skip("before Linux 6.16 the daemon can't find the connection, and the kernel's own readahead stays")
	}
	if b, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", unix.Minor(st.Dev))); err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(readAhead) {
		t.Errorf("readahead %q, %v", b, err)
	}
}
