package lazyfs

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// local is a file that exists on the target only. overlay.mu guards all but id and file; file is closed when no
// name, lookup or open handle is left.
type local struct {
	id      uint64
	attr    wire.FileAttr // size, blocks and times of regular files: file's
	mode    uint32
	names   int // that lead to it
	lookups uint64
	opens   int
	target  string
	xattrs  map[string][]byte
	linked  bool     // the file has a name where it is kept
	kept    bool     // it is written down as it is
	done    []uint64 // the last requests that have changed it, if it is kept for a successor
	file    *os.File // regular files
}

// newLocal tells what kind of local node to make.
type newLocal struct {
	mode, rdev uint32
	target     string
	named      bool // a name will lead to it
}

func (o *overlay) newLocal(who wire.FileCaller, n newLocal) (*local, error) {
	now := time.Now()
	t := wire.FileTime{Sec: now.Unix(), Nsec: uint32(now.Nanosecond())}
	l := &local{mode: n.mode, target: n.target, attr: wire.FileAttr{
		Atime: t, Mtime: t, Ctime: t, UID: who.UID, GID: who.GID, Rdev: n.rdev, Blksize: 4096, Size: uint64(len(n.target)),
	}}
	if n.mode&syscall.S_IFMT == syscall.S_IFREG {
		f, err := storeFile(o.store)
		if err != nil {
			return nil, own(err)
		}
		l.file = f
	}
	if n.named {
		l.names = 1
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next++
	l.id = localBit | o.next
	o.locals[l.id] = l
	return l, nil
}

// storeFile makes an unnamed file.
func storeFile(dir string) (*os.File, error) {
	var fd int
	var err error
	if dir == "" {
		fd, err = unix.MemfdCreate("lazyfs", unix.MFD_CLOEXEC)
	} else {
		fd, err = unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("make file in %q: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "local file"), nil
}

// reapLocked ends a node that nothing leads to.
func (o *overlay) reapLocked(l *local) {
	if l.names > 0 || l.lookups > 0 || l.opens > 0 {
		return
	}
	delete(o.locals, l.id)
	o.unkeepLocked(l)
	if l.file != nil {
		_ = l.file.Close()
	}
}

func (o *overlay) forgetLocal(node, n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.locals[node]; l != nil {
		l.lookups -= min(l.lookups, n)
		o.keepLocked(l, 0)
		o.reapLocked(l)
	}
}

// with runs fn with a node under mu.
func (o *overlay) with(node uint64, fn func(*local) error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.locals[node]
	if l == nil {
		return errno(syscall.ESTALE)
	}
	return fn(l)
}

// at work: the file stays open, because the kernel has the node looked up or open while it asks.
func (o *overlay) fileOf(node uint64) (*os.File, error) {
	var f *os.File
	err := o.with(node, func(l *local) error {
		if f = l.file; f == nil {
			return errno(syscall.EINVAL)
		}
		return nil
	})
	return f, err
}

func (o *overlay) attr(node uint64) (a wire.FileAttr, err error) {
	err = o.with(node, func(l *local) error {
		a, err = l.stat()
		return err
	})
	return a, err
}

func (l *local) stat() (wire.FileAttr, error) {
	a := l.attr
	a.Ino, a.Mode, a.Nlink = l.id, l.mode, uint32(l.names)
	if l.mode&syscall.S_IFMT == syscall.S_IFDIR && l.names > 0 {
		a.Nlink = 2
	}
	if l.file != nil {
		var st unix.Stat_t
		if err := unix.Fstat(int(l.file.Fd()), &st); err != nil {
			return a, own(err)
		}
		ts := func(t unix.Timespec) wire.FileTime { return wire.FileTime{Sec: t.Sec, Nsec: uint32(t.Nsec)} }
		a.Size, a.Blocks = uint64(st.Size), uint64(st.Blocks)
		a.Atime, a.Mtime, a.Ctime = ts(st.Atim), ts(st.Mtim), ts(st.Ctim)
	}
	return a, nil
}

func (o *overlay) setAttr(number, node uint64, s *wire.FileSetAttr) (wire.FileAttr, error) {
	err := o.change(number, node, func(l *local) error {
		has := func(bit uint32) bool { return s.Valid&bit != 0 }
		if has(wire.FileSetUID) {
			l.attr.UID = s.UID
		}
		if has(wire.FileSetGID) {
			l.attr.GID = s.GID
		}
		if has(wire.FileSetUID | wire.FileSetGID) {
			l.killBits()
		}
		if has(wire.FileSetMode) {
			l.mode = l.mode&syscall.S_IFMT | s.Mode&0o7777
		}
		if has(wire.FileSetSize) {
			if l.file == nil {
				return errno(syscall.EINVAL)
			}
			if has(wire.FileSetKillPriv) {
				l.killBits()
			}
			if err := unix.Ftruncate(int(l.file.Fd()), int64(s.Size)); err != nil {
				return own(err)
			}
		}
		if has(wire.FileSetAtime | wire.FileSetMtime) {
			return l.setTimes(s)
		}
		return nil
	})
	if err != nil {
		return wire.FileAttr{}, err
	}
	return o.attr(node)
}

// killBits takes set-user-ID and set-group-ID from what can be run.
func (l *local) killBits() {
	if l.mode&syscall.S_IFMT != syscall.S_IFREG {
		return
	}
	l.mode &^= syscall.S_ISUID
	if l.mode&0o010 != 0 {
		l.mode &^= syscall.S_ISGID
	}
}

func (l *local) setTimes(s *wire.FileSetAttr) error {
	now := time.Now()
	pick := func(set, isNow uint32, t wire.FileTime, old *wire.FileTime) unix.Timespec {
		switch {
		case s.Valid&set == 0:
			return unix.Timespec{Nsec: unix.UTIME_OMIT}
		case s.Valid&isNow != 0:
			t = wire.FileTime{Sec: now.Unix(), Nsec: uint32(now.Nanosecond())}
		}
		*old = t
		return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
	}
	ts := []unix.Timespec{
		pick(wire.FileSetAtime, wire.FileSetAtimeNow, s.Atime, &l.attr.Atime),
		pick(wire.FileSetMtime, wire.FileSetMtimeNow, s.Mtime, &l.attr.Mtime),
	}
	if l.file == nil {
		return nil
	}
	return own(unix.UtimesNanoAt(int(l.file.Fd()), "", ts, unix.AT_EMPTY_PATH))
}

func (o *overlay) readlink(node uint64) ([]byte, fuse.Status) {
	var t string
	err := o.with(node, func(l *local) error { t = l.target; return nil })
	return []byte(t), o.f.status(err)
}

// close lets go of all local files.
func (o *overlay) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lock != nil {
		_ = o.lock.Close()
	}
	for id, l := range o.locals {
		delete(o.locals, id)
		if l.file != nil {
			_ = l.file.Close()
		}
	}
}
