package fsmodel

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// User does operations with credentials, a umask and a working directory of its own, and notes what each came to. It is a thread: the system calls that
// change credentials are given to it alone, where Go's own would change all threads.
type User struct {
	name  string
	do    chan func()
	ended chan struct{}
	log   *[]string
	fds   []int
}

// KeepThread keeps the thread of a test from becoming a user's, until the test is over. It comes before whatever starts a process that is to die with its parent: for the
// kernel the parent is the thread that has started it (prctl(2), PR_SET_PDEATHSIG), and those of users end.
func KeepThread(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
}

// who may be a User. carol is in alice's group.
var who = []struct {
	name     string
	uid, gid int
	groups   []uint32
}{{"root", 0, 0, nil}, {"alice", 1001, 1001, []uint32{2001}}, {"bob", 1002, 1002, nil}, {"carol", 1003, 1003, []uint32{1001}}}

// newUser begins as one of who in a directory.
func newUser(t testing.TB, i int, dir string, log *[]string) *User {
	t.Helper()
	w := who[i]
	u := &User{name: w.name, do: make(chan func()), ended: make(chan struct{}), log: log}
	begun := make(chan error, 1)
	go func() {
		defer close(u.ended)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		begun <- become(w.uid, w.gid, w.groups, dir)
		for f := range u.do {
			f()
		}
	}()
	if err := <-begun; err != nil {
		close(u.do)
		t.Fatalf("become %s in %s: %v", w.name, dir, err)
	}
	return u
}

func become(uid, gid int, groups []uint32, dir string) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	unix.Umask(0o022)
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if uid == 0 {
		return nil
	}
	if err := setGroups(groups); err != nil {
		return err
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
		return e
	}
	return nil
}

// end closes what the user has open, and waits for its thread.
func (u *User) end() {
	u.closeAll()
	close(u.do)
	<-u.ended
}

func (u *User) closeAll() {
	for _, fd := range u.fds {
		_ = unix.Close(fd)
	}
	u.fds = nil
}

// run does f as the user and notes it.
func (u *User) run(f func() (string, error), what string, args ...any) {
	done := make(chan string)
	u.do <- func() {
		s, err := f()
		if err != nil {
			s = errno(err)
			if s == "" {
				s = err.Error()
			}
		}
		done <- s
	}
	*u.log = append(*u.log, fmt.Sprintf("%s: %s %.60q = %s", u.name, what, fmt.Sprint(args...), <-done))
}

func (u *User) call(f func() error, what string, args ...any) {
	u.run(func() (string, error) { return "ok", f() }, what, args...)
}

func oct(mode uint32) string { return fmt.Sprintf(" %o", mode) }

// Open gives a descriptor, -1 if it fails. It is closed when the case is over.
func (u *User) Open(p string, flags int, mode uint32) int {
	fd := -1
	u.call(func() (err error) {
		fd, err = unix.Open(p, flags|unix.O_CLOEXEC, mode)
		return err
	}, "open", p, fmt.Sprintf(" %x", flags), oct(mode))
	if fd >= 0 {
		u.fds = append(u.fds, fd)
	}
	return fd
}

// Make makes a file with contents and a mode, umask or not.
func (u *User) Make(p, contents string, mode uint32) {
	fd := u.Open(p, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, mode)
	u.Write(fd, contents)
	u.Fchmod(fd, mode)
}

// Write tells how much was written.
func (u *User) Write(fd int, s string) {
	u.run(func() (string, error) { n, err := unix.Write(fd, []byte(s)); return fmt.Sprint(n), err }, "write", s)
}

// Pread tells what was read.
func (u *User) Pread(fd, n int, off int64) {
	u.run(func() (string, error) {
		b := make([]byte, n)
		n, err := unix.Pread(fd, b, off)
		return fmt.Sprintf("%q", b[:max(n, 0)]), err
	}, "pread", n, " ", off)
}

// Truncate is truncate(2), by name.
func (u *User) Truncate(p string, n int64) {
	u.call(func() error { return unix.Truncate(p, n) }, "truncate", p, " ", n)
}

// Ftruncate is Truncate of what is open.
func (u *User) Ftruncate(fd int, n int64) {
	u.call(func() error { return unix.Ftruncate(fd, n) }, "ftruncate", n)
}

// Fallocate is fallocate(2), with its modes.
func (u *User) Fallocate(fd int, mode uint32, off, n int64) {
	u.call(func() error { return unix.Fallocate(fd, mode, off, n) }, "fallocate", mode, " ", off, " ", n)
}

// Chmod follows links.
func (u *User) Chmod(p string, mode uint32) {
	u.call(func() error { return unix.Chmod(p, mode) }, "chmod", p, oct(mode))
}

// Fchmod is Chmod of what is open.
func (u *User) Fchmod(fd int, mode uint32) {
	u.call(func() error { return unix.Fchmod(fd, mode) }, "fchmod", oct(mode))
}

// Chown follows links; -1 leaves an id as it is.
func (u *User) Chown(p string, uid, gid int) {
	u.call(func() error { return unix.Fchownat(unix.AT_FDCWD, p, uid, gid, 0) }, "chown", p, " ", uid, " ", gid)
}

// Lchown is Chown of a link itself.
func (u *User) Lchown(p string, uid, gid int) {
	u.call(func() error { return unix.Lchown(p, uid, gid) }, "lchown", p, " ", uid, " ", gid)
}

// Fchown is Chown of what is open.
func (u *User) Fchown(fd, uid, gid int) {
	u.call(func() error { return unix.Fchown(fd, uid, gid) }, "fchown", uid, " ", gid)
}

// Link gives p the name q, too; a link as p is not followed.
func (u *User) Link(p, q string) {
	u.call(func() error { return unix.Link(p, q) }, "link", p, " ", q)
}

// LinkFollow is Link of what p points to.
func (u *User) LinkFollow(p, q string) {
	u.call(func() error { return unix.Linkat(unix.AT_FDCWD, p, unix.AT_FDCWD, q, unix.AT_SYMLINK_FOLLOW) }, "link followed", p, " ", q)
}

// Symlink makes p point to to.
func (u *User) Symlink(to, p string) {
	u.call(func() error { return unix.Symlink(to, p) }, "symlink", to, " ", p)
}

// Unlink takes a name away, not a directory's.
func (u *User) Unlink(p string) { u.call(func() error { return unix.Unlink(p) }, "unlink", p) }

// Rmdir removes an empty directory.
func (u *User) Rmdir(p string) { u.call(func() error { return unix.Rmdir(p) }, "rmdir", p) }

// Mkdir makes a directory; the umask applies.
func (u *User) Mkdir(p string, mode uint32) {
	u.call(func() error { return unix.Mkdir(p, mode) }, "mkdir", p, oct(mode))
}

// Mkfifo makes a named pipe; the umask applies.
func (u *User) Mkfifo(p string, mode uint32) {
	u.call(func() error { return unix.Mkfifo(p, mode) }, "mkfifo", p, oct(mode))
}

// Mknod makes what the type in mode says; the umask applies.
func (u *User) Mknod(p string, mode uint32, dev int) {
	u.call(func() error { return unix.Mknod(p, mode, dev) }, "mknod", p, oct(mode), " ", dev)
}

// Rename is renameat2(2): flags may be RENAME_NOREPLACE or RENAME_EXCHANGE.
func (u *User) Rename(p, q string, flags uint) {
	u.call(func() error { return unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, flags) }, "rename", p, " ", q, " ", flags)
}

// Access is what a program with the real credentials may do.
func (u *User) Access(p string, mode uint32) {
	u.call(func() error { return unix.Access(p, mode) }, "access", p, " ", mode)
}

// Utimens sets times; nsec may be UTIME_NOW or UTIME_OMIT.
func (u *User) Utimens(p string, atime, mtime unix.Timespec, flags int) {
	u.call(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{atime, mtime}, flags) }, "utimens", p, " ", atime, " ", mtime)
}

// Touch is utimensat without times.
func (u *User) Touch(p string) {
	u.call(func() error {
		b, err := unix.BytePtrFromString(p)
		if err != nil {
			return err
		}
		return utimensNow(b)
	}, "touch", p)
}

// Setxattr does not follow links; flags may be XATTR_CREATE or XATTR_REPLACE.
func (u *User) Setxattr(p, name string, v []byte, flags int) {
	u.call(func() error { return unix.Lsetxattr(p, name, v, flags) }, "setxattr", p, " ", name, " ", len(v), " ", flags)
}

// Getxattr tells an attribute's length and its first bytes; with size 0 the length alone.
func (u *User) Getxattr(p, name string, size int) {
	u.run(func() (string, error) {
		b := make([]byte, size)
		n, err := unix.Lgetxattr(p, name, b)
		return fmt.Sprintf("%d %.40x", n, b[:min(max(n, 0), size)]), err
	}, "getxattr", p, " ", name, " ", size)
}

// Removexattr does not follow links.
func (u *User) Removexattr(p, name string) {
	u.call(func() error { return unix.Lremovexattr(p, name) }, "removexattr", p, " ", name)
}

// Xattrs lists names, in order.
func (u *User) Xattrs(p string) {
	u.run(func() (string, error) { return xattrNames(p) }, "listxattr", p)
}

func xattrNames(p string) (string, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, b)
	if err != nil {
		return "", err
	}
	l := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(l)
	return fmt.Sprint(l), nil
}

// Stat tells what stays the same wherever a file is. Times are told if they were set to something in the last century.
func (u *User) Stat(p string) {
	u.run(func() (string, error) { return describe(p) }, "stat", p)
}

// Fstat is Stat of what is open.
func (u *User) Fstat(fd int) {
	u.run(func() (string, error) {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		return statLine(&st), err
	}, "fstat")
}

func describe(p string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return "", err
	}
	s := statLine(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		to, err := os.Readlink(p)
		return s + " -> " + to, err
	}
	return s, nil
}

func statLine(st *unix.Stat_t) string {
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0
	}
	mtime := "of late"
	if st.Mtim.Sec < 1e9 {
		mtime = fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	return fmt.Sprintf("%o %d:%d links %d size %d rdev %x, changed %s", st.Mode, st.Uid, st.Gid, st.Nlink, size, st.Rdev, mtime)
}

// Atime tells the time of access, if it was set to something in the last century.
func (u *User) Atime(p string) {
	u.run(func() (string, error) {
		var st unix.Stat_t
		err := unix.Lstat(p, &st)
		if st.Atim.Sec < 1e9 {
			return fmt.Sprintf("%d.%09d", st.Atim.Sec, st.Atim.Nsec), err
		}
		return "of late", err
	}, "atime", p)
}

// Names lists a directory.
func (u *User) Names(p string) {
	u.run(func() (string, error) {
		f, err := os.Open(p)
		if err != nil {
			return "", err
		}
		defer f.Close()
		ents, err := f.ReadDir(-1)
		var l []string
		for _, e := range ents {
			l = append(l, e.Name()+" "+e.Type().String())
		}
		slices.Sort(l)
		return fmt.Sprint(l), err
	}, "readdir", p)
}

// Flags tells status flags of what is open.
func (u *User) Flags(fd int) {
	u.run(func() (string, error) {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		return fmt.Sprintf("%x", n), err
	}, "flags")
}

// Seek is lseek.
func (u *User) Seek(fd int, off int64, whence int) {
	u.run(func() (string, error) { n, err := unix.Seek(fd, off, whence); return fmt.Sprint(n), err }, "seek", off, " ", whence)
}

// Close tells what close says.
func (u *User) Close(fd int) {
	u.fds = slices.DeleteFunc(u.fds, func(x int) bool { return x == fd })
	u.call(func() error { return unix.Close(fd) }, "close")
}
