package lazyfs

import (
	"errors"
	"io"
	"sort"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// open counts an open handle; all handles of a local node are the same.
func (o *overlay) open(number, node uint64) (uint64, error) {
	err := o.change(number, node, func(l *local) error {
		if l.file == nil {
			return errno(syscall.EACCES)
		}
		l.opens++
		return nil
	})
	return localBit, err
}

func (o *overlay) release(number, node uint64) {
	_ = o.change(number, node, func(l *local) error { // it may be gone
		if l.opens > 0 {
			l.opens--
			o.reapLocked(l)
		}
		return nil
	})
}

func (o *overlay) read(node uint64, b []byte, off uint64) (int, error) {
	f, err := o.fileOf(node)
	if err != nil {
		return 0, err
	}
	n, err := f.ReadAt(b, int64(off))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, own(err)
}

// write: the kernel knows the size, so appending needs nothing more.
func (o *overlay) write(number, node uint64, b []byte, off uint64, kill bool) (int, error) {
	f, err := o.fileOf(node)
	if err != nil {
		return 0, err
	}
	if kill {
		_ = o.change(number, node, func(l *local) error { l.killBits(); return nil })
	}
	n, err := f.WriteAt(b, int64(off))
	if n > 0 {
		err = nil
	}
	return n, own(err)
}

func (o *overlay) fallocate(node uint64, mode uint32, off, n int64) error {
	f, err := o.fileOf(node)
	if err != nil {
		return err
	}
	return own(unix.Fallocate(int(f.Fd()), mode, off, n))
}

func (o *overlay) lseek(node uint64, off int64, whence uint32) (int64, error) {
	f, err := o.fileOf(node)
	if err != nil {
		return 0, err
	}
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, errno(syscall.EINVAL)
	}
	n, err := unix.Seek(int(f.Fd()), off, int(whence))
	return n, own(err)
}

func (o *overlay) getXattr(node uint64, name string, dest []byte) (uint32, fuse.Status) {
	var v []byte
	var ok bool
	if err := o.with(node, func(l *local) error { v, ok = l.xattrs[name]; return nil }); err != nil {
		return 0, o.f.status(err)
	}
	if !ok {
		return 0, fuse.ENODATA
	}
	return fit(v, dest)
}

func fit(v, dest []byte) (uint32, fuse.Status) {
	if len(dest) == 0 {
		return uint32(len(v)), fuse.OK
	}
	if len(v) > len(dest) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

func (o *overlay) listXattr(node uint64, dest []byte) (uint32, fuse.Status) {
	var names []string
	if err := o.with(node, func(l *local) error {
		for n := range l.xattrs {
			names = append(names, n)
		}
		return nil
	}); err != nil {
		return 0, o.f.status(err)
	}
	sort.Strings(names)
	var all []byte
	for _, n := range names {
		all = append(append(all, n...), 0)
	}
	return fit(all, dest)
}

func (o *overlay) setXattr(number, node uint64, name string, v []byte, flags uint32) fuse.Status {
	return o.f.status(o.change(number, node, func(l *local) error {
		_, there := l.xattrs[name]
		switch {
		case there && flags&unix.XATTR_CREATE != 0:
			return errno(syscall.EEXIST)
		case !there && flags&unix.XATTR_REPLACE != 0:
			return errno(syscall.ENODATA)
		}
		if l.xattrs == nil {
			l.xattrs = map[string][]byte{}
		}
		l.xattrs[name] = append([]byte(nil), v...)
		return nil
	}))
}

func (o *overlay) removeXattr(number, node uint64, name string) fuse.Status {
	return o.f.status(o.change(number, node, func(l *local) error {
		if _, there := l.xattrs[name]; !there {
			return errno(syscall.ENODATA)
		}
		delete(l.xattrs, name)
		return nil
	}))
}
