package store

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// actor changes a directory at random, as a tree of processes does.
type actor struct {
	root string
	r    *rand.Rand
	fds  [6]int
}

func newActor(root string, seed uint64) *actor {
	a := &actor{root: root, r: rand.New(rand.NewPCG(seed, 1))}
	for i := range a.fds {
		a.fds[i] = -1
	}
	return a
}

func (a *actor) close() {
	for _, fd := range a.fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

var hostile = []string{"a", "b", "c d", "nl\nx", "-rf", "*", "\\", "\xff\xfe", "a (deleted)", strings.Repeat("n", 255), "…", ".lazymig", "'\"$(x)"}

func (a *actor) path() string {
	p := a.root
	for range a.r.IntN(3) {
		p = filepath.Join(p, "d"+hostile[a.r.IntN(4)])
	}
	return filepath.Join(p, hostile[a.r.IntN(len(hostile))])
}

// step does something; errors are as good as successes.
func (a *actor) step() {
	r := a.r
	p, q, i := a.path(), a.path(), r.IntN(len(a.fds))
	fd := a.fds[i]
	off := int64(r.IntN(300_000))
	switch r.IntN(20) {
	case 0, 1, 2:
		_ = unix.Close(fd)
		flags := []int{unix.O_RDWR | unix.O_CREAT, unix.O_RDONLY, unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT, unix.O_RDWR | unix.O_TRUNC, unix.O_RDWR | unix.O_CREAT | unix.O_EXCL}
		a.fds[i], _ = unix.Open(p, flags[r.IntN(len(flags))]|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600|uint32(r.IntN(0o100)))
	case 3, 4, 5, 6:
		b := make([]byte, r.IntN(20_000))
		for k := range b {
			b[k] = byte(r.IntN(3))
		}
		if r.IntN(2) == 0 {
			_, _ = unix.Pwrite(fd, b, off)
		} else {
			_, _ = unix.Write(fd, b)
		}
	case 7:
		_ = unix.Ftruncate(fd, off)
	case 8:
		mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_ZERO_RANGE}[r.IntN(3)]
		_ = unix.Fallocate(fd, mode, off, int64(r.IntN(50_000))+1)
	case 9:
		d := a.root
		for range r.IntN(3) {
			d = filepath.Join(d, "d"+hostile[r.IntN(4)])
			_ = unix.Mkdir(d, 0o755)
		}
	case 10:
		_ = unix.Rmdir(filepath.Dir(p))
	case 11, 12:
		_ = unix.Unlink(p)
	case 13:
		_ = unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, uint(r.IntN(3)))
	case 14:
		if d, e := filepath.Dir(p), filepath.Dir(q); d != a.root && e != a.root {
			_ = unix.Renameat2(unix.AT_FDCWD, d, unix.AT_FDCWD, e, uint(r.IntN(3)))
		}
	case 15:
		_ = unix.Link(p, q)
	case 16:
		switch r.IntN(3) {
		case 0:
			_ = unix.Symlink(q, p)
		case 1:
			_ = unix.Mkfifo(p, 0o640)
		default:
			_ = unix.Mknod(p, unix.S_IFSOCK|0o600, 0)
		}
	case 17:
		_ = unix.Chmod(p, uint32(r.IntN(0o7777)))
		_ = unix.Lchown(q, r.IntN(3), r.IntN(3))
	case 18:
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: off, Nsec: 123456789}, {Sec: off + 1, Nsec: 987654321}}, unix.AT_SYMLINK_NOFOLLOW)
	default:
		if r.IntN(2) == 0 {
			_ = unix.Lsetxattr(p, "user.x", []byte(q), 0)
		} else {
			_ = unix.Lremovexattr(p, "user.x")
		}
	}
}

// describe is all of a tree that must be the same in its copy. Hard links are told by the first name.
func describe(t testing.TB, root string) []string {
	t.Helper()
	var all []string
	first := map[uint64]string{}
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, root)
		if rel == "/"+hiddenDir && d.IsDir() {
			return filepath.SkipDir
		}
		all = append(all, describeOne(t, p, rel, first))
		return nil
	}))
	slices.Sort(all)
	return all
}

func describeOne(t testing.TB, p, rel string, first map[uint64]string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(p, &st))
	s := fmt.Sprintf("%q %o %d:%d mtime %d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	b := make([]byte, 64<<10)
	if n, err := unix.Llistxattr(p, b); err == nil && n > 0 {
		names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
		slices.Sort(names)
		for _, x := range names {
			v := make([]byte, 64<<10)
			n, err := unix.Lgetxattr(p, x, v)
			must(t, err)
			s += fmt.Sprintf(" %s=%q", x, v[:n])
		}
	}
	if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return s
	}
	s += fmt.Sprintf(" links %d rdev %d", st.Nlink, st.Rdev)
	if first != nil {
		if first[st.Ino] == "" {
			first[st.Ino] = rel
		}
		s += fmt.Sprintf(" as %q", first[st.Ino])
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		l, err := os.Readlink(p)
		must(t, err)
		s += fmt.Sprintf(" -> %q", l)
	case syscall.S_IFREG:
		c, err := os.ReadFile(p)
		must(t, err)
		s += fmt.Sprintf(" size %d %x", len(c), sha256.Sum256(c))
	}
	return s
}

func compare(t testing.TB, what string, want, got []string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s: the copy lacks\n%s", what, w)
		}
	}
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("%s: the copy has\n%s", what, g)
		}
	}
}

// TestModel lets random changes go on while all is copied, stops them now and then, and compares.
func TestModel(t *testing.T) {
	for seed := range uint64(3) {
		r := newRig(t)
		must(t, os.Mkdir(filepath.Join(r.src, "w"), 0o755))
		a := newActor(filepath.Join(r.mnt, "w"), seed)
		for range 300 {
			a.step()
		}
		r.move(Want{With: []string{"/w"}})
		for stop := range 4 {
			for range 600 {
				a.step()
			}
			s := r.settle()
			if len(s.Undecided) > 0 {
				t.Errorf("undecided: %v", s.Undecided)
			}
			compare(t, fmt.Sprintf("seed %d stop %d", seed, stop), describe(t, r.src), describe(t, r.root))
			for _, fd := range a.fds {
				a.compareOpen(t, r, fd)
			}
			if t.Failed() {
				t.FailNow()
			}
		}
		a.close()
	}
}

// compareOpen looks whether the copy of an open file, with or without a name, is that file.
func (a *actor) compareOpen(t *testing.T, r *rig, fd int) {
	t.Helper()
	var st unix.Stat_t
	if fd < 0 || unix.Fstat(fd, &st) != nil {
		return
	}
	p := r.local(fd)
	if p == "" {
		t.Errorf("open file %d of inode %d is not in the store", fd, st.Ino)
		return
	}
	var ours unix.Stat_t
	must(t, unix.Lstat(p, &ours))
	links := st.Nlink
	if links == 0 {
		links = 1 // the hidden name
	}
	if ours.Mode != st.Mode || ours.Uid != st.Uid || ours.Gid != st.Gid || ours.Mtim != st.Mtim || ours.Size != st.Size || ours.Nlink != links {
		t.Errorf("open file %d: copy %s is %+v, not %+v", fd, p, ours, st)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE == unix.O_WRONLY || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	want := make([]byte, st.Size)
	_, err := unix.Pread(fd, want, 0)
	must(t, err)
	got, err := os.ReadFile(p)
	must(t, err)
	if string(want) != string(got) {
		t.Errorf("open file %d: contents of %s differ", fd, p)
	}
}
