package remotefs

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// opGetAttr → attr
func (s *Server) opGetAttr(r *request) error {
	if err := r.end(); err != nil {
		return err
	}
	return s.replyAttr(r)
}

func (s *Server) replyAttr(r *request) error {
	a, _, _, err := s.tab.stat(r.node.fd)
	if err != nil {
		return err
	}
	a.Put(&r.e)
	return nil
}

// opSetAttr: change → attr
func (s *Server) opSetAttr(r *request) error {
	var c wire.FileSetAttr
	c.Get(r.d)
	if err := r.end(); err != nil {
		return err
	}
	if r.node.fs.hidden {
		return unix.EROFS
	}
	const something = wire.FileSetMode | wire.FileSetUID | wire.FileSetGID | wire.FileSetSize | wire.FileSetAtime | wire.FileSetMtime
	if c.Valid&(wire.FileSetUID|wire.FileSetGID) != 0 || c.Valid&something == 0 { // chown(-1, -1), which takes bits away, is what nothing else comes as
		uid, gid := -1, -1
		if c.Valid&wire.FileSetUID != 0 {
			uid = int(c.UID)
		}
		if c.Valid&wire.FileSetGID != 0 {
			gid = int(c.GID)
		}
		if err := unix.Fchownat(r.node.fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if c.Valid&wire.FileSetMode != 0 { // after chown, which takes bits away
		if err := unix.Fchmodat(unix.AT_FDCWD, s.path(r.node.fd), c.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if c.Valid&wire.FileSetSize != 0 {
		if err := s.truncate(r, &c); err != nil {
			return err
		}
	}
	if c.Valid&(wire.FileSetAtime|wire.FileSetMtime) != 0 {
		ts := []unix.Timespec{
			stamp(c.Valid, wire.FileSetAtime, wire.FileSetAtimeNow, c.Atime),
			stamp(c.Valid, wire.FileSetMtime, wire.FileSetMtimeNow, c.Mtime),
		}
		if err := unix.UtimesNanoAt(r.node.fd, "", ts, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	return s.replyAttr(r)
}

func stamp(valid, set, now uint32, t wire.FileTime) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

func (s *Server) truncate(r *request, c *wire.FileSetAttr) error {
	if r.node.mode != unix.S_IFREG {
		return unix.EINVAL
	}
	fd := -1
	if c.Valid&wire.FileSetHandle != 0 {
		h, err := s.tab.handle(c.Handle)
		if err != nil {
			return err
		}
		defer s.tab.putHandle(h)
		if h.node != r.node {
			return unix.EBADF
		}
		fd = h.fd
	} else {
		var err error
		if fd, err = s.reopen(r.node.fd, unix.O_WRONLY|unix.O_NONBLOCK); err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
	}
	return s.losingBits(fd, r.who, c.Valid&wire.FileSetKillPriv != 0, func() error {
		_, err := retry(func() (int, error) { return 0, unix.Ftruncate(fd, int64(c.Size)) })
		return err
	})
}

// losingBits runs fn, which changes the contents of fd, so that the kernel takes set-user-ID bits away if kill says
// so. Root would keep them; the detour through another thread is needed only where there are such bits.
func (s *Server) losingBits(fd int, who wire.FileCaller, kill bool, fn func() error) error {
	if kill {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			return s.cred.do(as{uid: who.UID, gid: who.GID, noFsetid: true}, fn)
		}
	}
	return fn()
}

// opStatfs → statfs
func (s *Server) opStatfs(r *request) error {
	if err := r.end(); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(r.node.fd, &st); err != nil {
		return err
	}
	f := wire.FileStatfs{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Namelen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
	}
	f.Put(&r.e)
	return nil
}

// xattrName takes the name of an attribute.
func (r *request) xattrName() (string, error) {
	s := r.d.String(4096)
	if err := r.d.Err(); err != nil {
		return "", errors.Join(errProtocol, err)
	}
	if s == "" || len(s) > wire.MaxFileName || strings.IndexByte(s, 0) >= 0 {
		return "", unix.ERANGE
	}
	if r.node.fs.hidden {
		return "", unix.EOPNOTSUPP
	}
	return s, nil
}

// opSetXattr: name, flags, value →. Through /proc's link also a symbolic link or socket is reached itself.
func (s *Server) opSetXattr(r *request) error {
	name, err := r.xattrName()
	if err != nil {
		return err
	}
	flags, kill := r.d.U32(), r.d.Bool()
	v := r.d.Bytes(wire.MaxFileXattr)
	if err := r.end(); err != nil {
		return err
	}
	if s.flips(r, name, false) {
		return nil
	}
	set := func() error { return unix.Setxattr(s.path(r.node.fd), name, v, int(flags)) }
	if kill { // an access ACL set by a caller without CAP_FSETID takes set-group-ID away
		return s.cred.do(as{noFsetid: true, gid: r.who.GID}, set)
	}
	return set()
}

// flips: an attribute was there when the request was begun, and is not any more, or the other way round.
func (s *Server) flips(r *request, name string, from bool) bool {
	_, err := unix.Getxattr(s.path(r.node.fd), name, nil)
	now := witness{there: err == nil}
	was, again := s.before(r, now)
	return again && was.there == from && now.there != from
}

// opGetXattr: name, size → value, or its size if size is 0
func (s *Server) opGetXattr(r *request) error {
	name, err := r.xattrName()
	if err != nil {
		return err
	}
	return s.xattrs(r, func(b []byte) (int, error) { return unix.Getxattr(s.path(r.node.fd), name, b) })
}

// opListXattr: size → names, or their size if size is 0
func (s *Server) opListXattr(r *request) error {
	if r.node.fs.hidden {
		return unix.EOPNOTSUPP
	}
	return s.xattrs(r, func(b []byte) (int, error) { return unix.Listxattr(s.path(r.node.fd), b) })
}

func (s *Server) xattrs(r *request, get func([]byte) (int, error)) error {
	size := r.d.U32()
	if err := r.end(); err != nil {
		return err
	}
	b := make([]byte, min(size, wire.MaxFileXattr))
	n, err := get(b)
	if err != nil {
		return err
	}
	r.e.U32(uint32(n))
	if size != 0 {
		r.raw = b[:n]
	}
	return nil
}

// opRemoveXattr: name →
func (s *Server) opRemoveXattr(r *request) error {
	name, err := r.xattrName()
	if err != nil {
		return err
	}
	if err := r.end(); err != nil {
		return err
	}
	if s.flips(r, name, true) {
		return nil
	}
	return unix.Removexattr(s.path(r.node.fd), name)
}
