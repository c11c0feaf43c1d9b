package lazyfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(data), 0o644))
}

func has(t *testing.T, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != want {
		t.Fatalf("%s has %.80q, %v; want %.80q", path, b, err, want)
	}
}

func wantErr(t *testing.T, what string, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: %v, want %v", what, err, want)
	}
}

func gone(t *testing.T, path string) {
	t.Helper()
	_, err := os.Lstat(path)
	wantErr(t, path, err, unix.ENOENT)
}

// TestSemantics does to the mount what a program may do, and looks at mount and source.
func TestSemantics(t *testing.T) {
	for name, fn := range map[string]func(*testing.T, *rig){
		"rename flags": func(t *testing.T, r *rig) {
			a, b := filepath.Join(r.mnt, "a"), filepath.Join(r.mnt, "b")
			write(t, a, "A")
			write(t, b, "B")
			wantErr(t, "noreplace", unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE), unix.EEXIST)
			must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
			has(t, a, "B")
			has(t, b, "A")
			must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, filepath.Join(r.mnt, "c"), unix.RENAME_NOREPLACE))
			gone(t, a)
			gone(t, filepath.Join(r.src, "a"))
			has(t, filepath.Join(r.src, "c"), "B")
			must(t, os.Mkdir(filepath.Join(r.mnt, "d"), 0o755))
			write(t, filepath.Join(r.mnt, "d/x"), "")
			must(t, os.Mkdir(filepath.Join(r.mnt, "e"), 0o755))
			wantErr(t, "onto a full directory", unix.Rename(filepath.Join(r.mnt, "e"), filepath.Join(r.mnt, "d")), unix.ENOTEMPTY)
			wantErr(t, "file onto directory", unix.Rename(b, filepath.Join(r.mnt, "e")), unix.EISDIR)
			wantErr(t, "into itself", unix.Rename(filepath.Join(r.mnt, "d"), filepath.Join(r.mnt, "d/y")), unix.EINVAL)
		},
		"holes": func(t *testing.T, r *rig) {
			p := filepath.Join(r.mnt, "f")
			f, err := os.Create(p)
			must(t, err)
			defer f.Close()
			fd := int(f.Fd())
			_, err = f.WriteAt(bytes.Repeat([]byte("x"), 64<<10), 1<<20)
			must(t, err)
			pos, err := unix.Seek(fd, 0, unix.SEEK_DATA)
			if err != nil || pos != 1<<20 {
				t.Fatalf("data at %d, %v", pos, err)
			}
			must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 32<<10))
			if pos, err = unix.Seek(fd, 0, unix.SEEK_DATA); err != nil || pos != 1<<20+32<<10 {
				t.Fatalf("data at %d, %v after a hole", pos, err)
			}
			if pos, err = unix.Seek(fd, 1<<20+40<<10, unix.SEEK_HOLE); err != nil || pos != 1<<20+64<<10 {
				t.Fatalf("hole at %d, %v", pos, err)
			}
			_, err = unix.Seek(fd, 2<<20, unix.SEEK_DATA)
			wantErr(t, "data behind the end", err, unix.ENXIO)
			b := make([]byte, 64<<10)
			_, err = f.ReadAt(b, 1<<20)
			must(t, err)
			if !bytes.Equal(b[:32<<10], make([]byte, 32<<10)) || b[32<<10] != 'x' {
				t.Fatal("hole does not read as zeros")
			}
			must(t, unix.Fallocate(fd, 0, 2<<20, 4096))
			if st, err := f.Stat(); err != nil || st.Size() != 2<<20+4096 {
				t.Fatalf("size %v, %v after fallocate", st.Size(), err)
			}
		},
		"unlinked but open": func(t *testing.T, r *rig) {
			p := filepath.Join(r.mnt, "f")
			f, err := os.Create(p)
			must(t, err)
			defer f.Close()
			must(t, os.Remove(p))
			_, err = f.WriteString("still here")
			must(t, err)
			must(t, f.Truncate(5))
			must(t, f.Chmod(0o600))
			st, err := f.Stat()
			must(t, err)
			if s := st.Sys().(*syscall.Stat_t); s.Nlink != 0 || s.Size != 5 || s.Mode&0o777 != 0o600 {
				t.Fatalf("stat of an unlinked file: %+v", s)
			}
			var fs unix.Statfs_t
			must(t, unix.Fstatfs(int(f.Fd()), &fs))
			b := make([]byte, 10)
			if n, _ := f.ReadAt(b, 0); string(b[:n]) != "still" {
				t.Fatalf("read %q", b[:n])
			}
			gone(t, filepath.Join(r.src, "f"))
		},
		"append by two": func(t *testing.T, r *rig) {
			p := filepath.Join(r.mnt, "log")
			var fds [2]*os.File
			for i := range fds {
				f, err := os.OpenFile(p, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
				must(t, err)
				defer f.Close()
				fds[i] = f
			}
			want := ""
			for i := range 20 {
				s := fmt.Sprintf("line %d of %d\n", i, i%2)
				_, err := fds[i%2].WriteString(s)
				must(t, err)
				want += s
				has(t, p, want)
			}
			has(t, filepath.Join(r.src, "log"), want)
			// pages written back through such a descriptor have their place, they are not appended
			write(t, filepath.Join(r.mnt, "m"), strings.Repeat("a", 3*4096))
			f, err := os.OpenFile(filepath.Join(r.mnt, "m"), os.O_RDWR|os.O_APPEND, 0)
			must(t, err)
			defer f.Close()
			runAct(t, 0, 0, nil, "mmap", filepath.Join(r.mnt, "m"))
			if st, err := os.Stat(filepath.Join(r.src, "m")); err != nil || st.Size() != 3*4096 {
				t.Fatalf("source has %d bytes, %v", st.Size(), err)
			}
		},
		"mmap": func(t *testing.T, r *rig) {
			write(t, filepath.Join(r.src, "m"), strings.Repeat("a", 3*4096))
			runAct(t, 0, 0, nil, "mmap", filepath.Join(r.mnt, "m"))
			b, err := os.ReadFile(filepath.Join(r.src, "m"))
			must(t, err)
			want := bytes.Repeat([]byte("a"), 3*4096)
			copy(want[4096:], "shared")
			copy(want[8192:], "late")
			if !bytes.Equal(b, want) {
				t.Fatal("source does not have what was written to the mapping")
			}
			has(t, filepath.Join(r.mnt, "m"), string(want))
		},
		"copy_file_range": func(t *testing.T, r *rig) {
			write(t, filepath.Join(r.mnt, "a"), strings.Repeat("copy", 5000))
			a, err := os.Open(filepath.Join(r.mnt, "a"))
			must(t, err)
			defer a.Close()
			b, err := os.Create(filepath.Join(r.mnt, "b"))
			must(t, err)
			defer b.Close()
			for done := 0; done < 20000; {
				n, err := unix.CopyFileRange(int(a.Fd()), nil, int(b.Fd()), nil, 20000-done, 0)
				must(t, err)
				if n == 0 {
					t.Fatal("copied nothing")
				}
				done += n
			}
			has(t, filepath.Join(r.mnt, "b"), strings.Repeat("copy", 5000))
		},
		"xattr and ACL": func(t *testing.T, r *rig) {
			p := filepath.Join(r.mnt, "f")
			write(t, p, "x")
			must(t, unix.Setxattr(p, "user.k", []byte("v"), unix.XATTR_CREATE))
			wantErr(t, "create again", unix.Setxattr(p, "user.k", []byte("v"), unix.XATTR_CREATE), unix.EEXIST)
			wantErr(t, "replace nothing", unix.Setxattr(p, "user.n", []byte("v"), unix.XATTR_REPLACE), unix.ENODATA)
			b := make([]byte, 100)
			if n, err := unix.Getxattr(filepath.Join(r.src, "f"), "user.k", b); err != nil || string(b[:n]) != "v" {
				t.Fatalf("source has %q, %v", b[:max(n, 0)], err)
			}
			_, err := unix.Getxattr(p, "user.k", b[:0])
			must(t, err)
			must(t, unix.Setxattr(p, "user.k", []byte("longer"), 0))
			_, err = unix.Getxattr(p, "user.k", b[:2])
			wantErr(t, "short buffer", err, unix.ERANGE)
			must(t, unix.Removexattr(p, "user.k"))
			_, err = unix.Getxattr(p, "user.k", b)
			wantErr(t, "removed", err, unix.ENODATA)
			// capabilities of an executable go with a write to it
			capData := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			must(t, unix.Setxattr(p, "security.capability", capData, 0))
			if n, err := unix.Getxattr(p, "security.capability", b); err != nil || !bytes.Equal(b[:n], capData) {
				t.Fatalf("capability %x, %v", b[:max(n, 0)], err)
			}
			write(t, p, "y")
			_, err = unix.Getxattr(filepath.Join(r.src, "f"), "security.capability", b)
			wantErr(t, "capability after write", err, unix.ENODATA)
			// user 1234 may read by ACL alone
			acl := []byte{
				2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xd2, 4, 0, 0, 4, 0, 0, 0, 255, 255, 255, 255,
				16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
			}
			must(t, os.Chmod(p, 0o600))
			openUp(t, r.mnt)
			if s := runAct(t, 1234, 1234, nil, "errno", p); s != "EACCES" {
				t.Fatalf("open before the ACL: %s", s)
			}
			must(t, unix.Setxattr(p, "system.posix_acl_access", acl, 0))
			if s := runAct(t, 1234, 1234, nil, "errno", p); s != "" {
				t.Fatalf("open with the ACL: %s", s)
			}
			if s := runAct(t, 1235, 1235, nil, "errno", p); s != "EACCES" {
				t.Fatalf("open by another: %s", s)
			}
			if st, err := os.Stat(p); err != nil || st.Mode().Perm() != 0o640 {
				t.Fatalf("mode %v, %v: the mask is the group's bits", st.Mode(), err)
			}
		},
		"statfs": func(t *testing.T, r *rig) {
			var a, b unix.Statfs_t
			must(t, unix.Statfs(r.src, &a))
			must(t, unix.Statfs(r.mnt, &b))
			if a.Blocks != b.Blocks || a.Files != b.Files || a.Bsize != b.Bsize || a.Namelen != b.Namelen {
				t.Fatalf("source %+v, mount %+v", a, b)
			}
		},
		"links and nodes": func(t *testing.T, r *rig) {
			a, b := filepath.Join(r.mnt, "a"), filepath.Join(r.mnt, "b")
			write(t, a, "one")
			must(t, os.Link(a, b))
			f, err := os.OpenFile(b, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.WriteString(" two")
			must(t, errors.Join(err, f.Close()))
			has(t, a, "one two")
			nlink := func(p string) uint64 {
				st, err := os.Lstat(p)
				must(t, err)
				return uint64(st.Sys().(*syscall.Stat_t).Nlink) //nolint:unconvert // 32 bits on arm64
			}
			if nlink(a) != 2 {
				t.Fatalf("%d links", nlink(a))
			}
			must(t, os.Remove(a))
			if nlink(b) != 1 {
				t.Fatalf("%d links after unlink", nlink(b))
			}
			must(t, unix.Mkfifo(filepath.Join(r.mnt, "fifo"), 0o640))
			must(t, unix.Mknod(filepath.Join(r.mnt, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
			st, err := os.Lstat(filepath.Join(r.mnt, "null"))
			must(t, err)
			if s := st.Sys().(*syscall.Stat_t); s.Rdev != unix.Mkdev(1, 3) || s.Mode&unix.S_IFMT != unix.S_IFCHR {
				t.Fatalf("device node: %+v", s)
			}
			must(t, os.WriteFile(filepath.Join(r.mnt, "null"), []byte("gone"), 0))
			must(t, os.Symlink("b", filepath.Join(r.mnt, "l")))
			has(t, filepath.Join(r.mnt, "l"), "one two")
			wantErr(t, "unlink a directory", unix.Unlink(mkdir(t, r.mnt, "d")), unix.EISDIR)
			wantErr(t, "rmdir a file", unix.Rmdir(b), unix.ENOTDIR)
			wantErr(t, "a name too long", os.WriteFile(filepath.Join(r.mnt, strings.Repeat("n", 256)), nil, 0o644), unix.ENAMETOOLONG)
			write(t, filepath.Join(r.mnt, strings.Repeat("n", 255)), "")
			wantErr(t, "create what is there", os.Mkdir(b, 0o755), unix.EEXIST)
			_, err = os.ReadFile(filepath.Join(r.mnt, "b/x"))
			wantErr(t, "below a file", err, unix.ENOTDIR)
			_, err = os.ReadFile(filepath.Join(r.mnt, "no/x"))
			wantErr(t, "below nothing", err, unix.ENOENT)
			write(t, filepath.Join(r.mnt, "ttt"), "")
			_, err = unix.IoctlGetInt(int(mustOpen(t, filepath.Join(r.mnt, "ttt")).Fd()), unix.TIOCOUTQ)
			wantErr(t, "ioctl", err, unix.ENOTTY)
		},
	} {
		t.Run(name, func(t *testing.T) { fn(t, newRig(t, true)) })
	}
}

func mustOpen(t *testing.T, p string) *os.File {
	t.Helper()
	f, err := os.Open(p)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func mkdir(t *testing.T, dir, name string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	must(t, os.Mkdir(p, 0o755))
	return p
}

// openUp lets everybody through the directories above a mount.
func openUp(t *testing.T, mnt string) {
	t.Helper()
	for p := mnt; p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		must(t, os.Chmod(p, 0o755))
	}
}

func TestLocksAreLocal(t *testing.T) {
	r := newRig(t, true)
	write(t, filepath.Join(r.src, "f"), "x")
	frozen := mustOpen(t, filepath.Join(r.src, "f"))
	must(t, unix.Flock(int(frozen.Fd()), unix.LOCK_EX)) // the frozen tree's
	a, b := mustOpen(t, filepath.Join(r.mnt, "f")), mustOpen(t, filepath.Join(r.mnt, "f"))
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	wantErr(t, "second lock", unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_UN))
	lk := unix.Flock_t{Type: unix.F_RDLCK}
	must(t, unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &lk))
	must(t, unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}))
}

func TestCredentials(t *testing.T) {
	r := newRig(t, true)
	openUp(t, r.mnt)
	must(t, os.Chmod(r.mnt, 0o777))
	shared := mkdir(t, r.mnt, "shared")
	must(t, os.Chown(shared, 0, 777))
	must(t, os.Chmod(shared, 0o775|os.ModeSetgid))
	check := func(p string, uid, gid uint32, mode os.FileMode) {
		t.Helper()
		for _, root := range []string{r.mnt, r.src} {
			st, err := os.Lstat(filepath.Join(root, p))
			must(t, err)
			s := st.Sys().(*syscall.Stat_t)
			if s.Uid != uid || s.Gid != gid || mode != 0 && st.Mode().Perm() != mode {
				t.Errorf("%s/%s: %d:%d %v, want %d:%d %v", root, p, s.Uid, s.Gid, st.Mode(), uid, gid, mode)
			}
		}
	}
	runAct(t, 1234, 1235, nil, "create", filepath.Join(r.mnt, "f"))
	check("f", 1234, 1235, 0o640)
	check("f.dir", 1234, 1235, 0o750)
	check("f.link", 1234, 1235, 0)
	// a group that the server was not told, and a set-group-ID directory
	runAct(t, 1234, 1235, []uint32{777}, "create", filepath.Join(shared, "f"))
	check("shared/f", 1234, 777, 0o640)
	// contents changed by somebody without CAP_FSETID: set-user-ID goes
	write(t, filepath.Join(r.mnt, "suid"), "abc")
	must(t, os.Chmod(filepath.Join(r.mnt, "suid"), 0o6777|os.ModeSetuid|os.ModeSetgid))
	runAct(t, 1234, 1235, nil, "write", filepath.Join(r.mnt, "suid"))
	for _, root := range []string{r.src, r.mnt} {
		if st, err := os.Stat(filepath.Join(root, "suid")); err != nil || st.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
			t.Errorf("mode %v, %v after a write by another user", st.Mode(), err)
		}
	}
	// default ACL of a directory beats the umask
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255}
	d := mkdir(t, r.mnt, "acl")
	must(t, os.Chmod(d, 0o777))
	must(t, unix.Setxattr(d, "system.posix_acl_default", acl, 0))
	runAct(t, 1234, 1235, nil, "create", filepath.Join(d, "f"))
	check("acl/f", 1234, 1235, 0o664)
}
