package remotefs

import (
	"errors"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

var readBufs = sync.Pool{New: func() any { b := make([]byte, wire.MaxFileIO); return &b }}

// keptFlags are the open flags that mean something at the source. O_APPEND is not among them: pwrite to such a
// descriptor ignores its offset, which would put pages that the target writes back at the end of the file.
const keptFlags = unix.O_ACCMODE | unix.O_SYNC | unix.O_DSYNC | unix.O_NOATIME

func (r *request) fileHandle(s *Server, id uint64) (*handle, error) {
	h, err := s.tab.handle(id)
	if err != nil {
		return nil, err
	}
	if h.dir != nil || h.node != r.node {
		s.tab.putHandle(h)
		return nil, unix.EBADF
	}
	return h, nil
}

// opOpen: flags → handle
func (s *Server) opOpen(r *request) error {
	flags := int(r.d.U32())
	if err := r.end(); err != nil {
		return err
	}
	fd, err := s.openFile(r, flags)
	if err != nil {
		return err
	}
	s.replyHandle(r, r.node, fd)
	return nil
}

// openFile opens the node as the caller, or as root where only the target's kernel knows the caller's groups; it has decided already.
func (s *Server) openFile(r *request, flags int) (fd int, err error) {
	if r.node.mode != unix.S_IFREG || r.node.fs.hidden {
		return -1, unix.EACCES
	}
	flags = flags&keptFlags | unix.O_NONBLOCK | unix.O_NOCTTY
	if r.who.UID != 0 {
		err = s.cred.do(as{uid: r.who.UID, gid: r.who.GID}, func() error {
			fd, err = s.reopen(r.node.fd, flags)
			return err
		})
		if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
			return fd, err
		}
	}
	return s.reopen(r.node.fd, flags)
}

func (s *Server) replyHandle(r *request, n *node, fd int) {
	r.e.U64(s.newHandle(r, n, fd, false).id)
}

// newHandle makes fd, which it takes over, a handle that r has opened.
func (s *Server) newHandle(r *request, n *node, fd int, dir bool) *handle {
	h := s.tab.open(n, fd, dir, r.id)
	if !dir {
		s.countFile(n)
	}
	r.effects.opened = append(r.effects.opened, h.id)
	return h
}

func (s *Server) countFile(n *node) {
	s.tab.mu.Lock()
	defer s.tab.mu.Unlock()
	if !n.opened {
		n.opened = true
		s.files.Add(1)
	}
}

// opCreate: name, flags, mode, umask → handle, entry
func (s *Server) opCreate(r *request) error {
	name, err := r.dirAndName()
	if err != nil {
		return err
	}
	flags, mode, umask := int(r.d.U32()), r.d.U32(), r.d.U32()
	if err := r.end(); err != nil {
		return err
	}
	keep := flags&keptFlags | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	if s.made(r, r.node.fd, name) {
		flags &^= unix.O_EXCL | unix.O_TRUNC
	}
	fd := -1
	err = s.create(r.who, umask, func() error {
		fd, err = s.newFD(func() (int, error) {
			return unix.Openat(r.node.fd, name, keep|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode&0o7777)
		})
		return err
	})
	if err == nil {
		return s.replyCreated(r, fd)
	}
	if !errors.Is(err, unix.EEXIST) || flags&unix.O_EXCL != 0 {
		return err
	}
	ent, err := s.lookup(r, r.node, name) // somebody at the source was faster
	if err != nil {
		return err
	}
	n, err := s.tab.get(ent.Node)
	if err != nil {
		return err
	}
	defer s.tab.put(n)
	if n.mode != unix.S_IFREG {
		s.unlook(r, ent.Node)
		return unix.EEXIST
	}
	if fd, err = s.reopen(n.fd, keep|flags&unix.O_TRUNC); err != nil {
		s.unlook(r, ent.Node)
		return err
	}
	s.replyHandle(r, n, fd)
	ent.Put(&r.e)
	return nil
}

// unlook takes a lookup back that the client is not told of.
func (s *Server) unlook(r *request, id uint64) {
	r.effects.forgot = append(r.effects.forgot, wire.FileForget{Node: id, Count: s.tab.forget(id, 1)})
}

// opTmpfile: flags, mode, umask → handle, entry
func (s *Server) opTmpfile(r *request) error {
	flags, mode, umask := int(r.d.U32()), r.d.U32(), r.d.U32()
	if err := r.end(); err != nil {
		return err
	}
	if err := inside(r.node); err != nil {
		return err
	}
	fd := -1
	err := s.create(r.who, umask, func() (err error) {
		fd, err = s.newFD(func() (int, error) {
			return unix.Openat(r.node.fd, ".", flags&(keptFlags|unix.O_EXCL)|unix.O_TMPFILE|unix.O_CLOEXEC, mode&0o7777)
		})
		return err
	})
	if err != nil {
		return err
	}
	return s.replyCreated(r, fd)
}

func (s *Server) replyCreated(r *request, fd int) error {
	path, err := s.reopen(fd, unix.O_PATH)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	n, a, err := s.tab.add(path)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	r.effects.looked = append(r.effects.looked, n.id)
	s.replyHandle(r, n, fd)
	ent := wire.FileEntry{Node: n.id, Attr: a}
	ent.Put(&r.e)
	return nil
}

// opRead: handle, offset, size → bytes
func (s *Server) opRead(r *request) error {
	id, off, size := r.d.U64(), r.d.U64(), r.d.U32()
	if err := r.end(); err != nil {
		return err
	}
	if size > wire.MaxFileIO || off > math.MaxInt64-wire.MaxFileIO {
		return unix.EINVAL
	}
	h, err := r.fileHandle(s, id)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(h)
	p := readBufs.Get().(*[]byte)
	r.free = func() { readBufs.Put(p) }
	b := (*p)[:size]
	got := 0
	for got < len(b) { // a short reply means the end of the file to the kernel that asks
		n, err := retry(func() (int, error) { return unix.Pread(h.fd, b[got:], int64(off)+int64(got)) })
		if err != nil && got == 0 {
			return err
		}
		if n <= 0 {
			break
		}
		got += n
	}
	s.bytes.Add(uint64(got))
	if !r.paid {
		s.budget.Spend(got)
	}
	r.raw = b[:got]
	return nil
}

// awaitBudget holds a bulk read up. It holds no lock, as awaitFrozen.
func (s *Server) awaitBudget(j *job) {
	d := *j.d // the request is read again
	d.U64()
	d.U64()
	d.U64()
	d.U64()
	s.budget.Files(j.link.gone, int(min(d.U32(), wire.MaxFileIO)))
}

// opWrite: handle, offset, flags, bytes → count
func (s *Server) opWrite(r *request) error { return s.write(r, false) }

// opStream is opWrite for a writer who has been told that it is done: nobody would ask why it was less.
func (s *Server) opStream(r *request) error { return s.write(r, true) }

func (s *Server) write(r *request, whole bool) error {
	id, off, flags := r.d.U64(), r.d.U64(), r.d.U32()
	b := r.d.Rest()
	if err := r.d.Err(); err != nil {
		return errors.Join(errProtocol, err)
	}
	if len(b) > wire.MaxFileIO || off > math.MaxInt64-wire.MaxFileIO {
		return unix.EINVAL
	}
	h, err := r.fileHandle(s, id)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(h)
	done := 0
	if flags&wire.FileWriteAppend != 0 {
		was, now, err := s.sizeBefore(r, h.fd)
		if err != nil {
			return err
		}
		if done = int(min(now-min(now, was), uint64(len(b)))); done == len(b) { // another server has written them
			r.e.U32(uint32(done))
			return nil
		}
	}
	err = s.losingBits(h.fd, r.who, flags&wire.FileWriteKillPriv != 0, func() error {
		for {
			n, err := retry(func() (int, error) {
				if flags&wire.FileWriteAppend != 0 {
					return unix.Pwritev2(h.fd, [][]byte{b[done:]}, int64(off)+int64(done), unix.RWF_APPEND)
				}
				return unix.Pwrite(h.fd, b[done:], int64(off)+int64(done))
			})
			if err != nil {
				if done > 0 && !whole { // told by the next write
					return nil
				}
				return err
			}
			if done += n; n == 0 || done == len(b) {
				return nil
			}
		}
	})
	if err != nil {
		return err
	}
	s.bytes.Add(uint64(done))
	r.e.U32(uint32(done))
	return nil
}

// opRelease: handle
func (s *Server) opRelease(r *request) error {
	id := r.d.U64()
	if err := r.end(); err != nil {
		return err
	}
	s.tab.release(id)
	return nil
}

// opFsync: handle, data only →
func (s *Server) opFsync(r *request) error {
	id, data := r.d.U64(), r.d.Bool()
	if err := r.end(); err != nil {
		return err
	}
	h, err := s.tab.handle(id)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(h)
	if data {
		return unix.Fdatasync(h.fd)
	}
	return unix.Fsync(h.fd)
}

// opFallocate: handle, mode, offset, length →
func (s *Server) opFallocate(r *request) error {
	id, mode, off, n := r.d.U64(), r.d.U32(), r.d.I64(), r.d.I64()
	if err := r.end(); err != nil {
		return err
	}
	h, err := r.fileHandle(s, id)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(h)
	if mode&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0 {
		was, now, err := s.sizeBefore(r, h.fd)
		if err != nil || was != now { // another server has done it
			return err
		}
	}
	return s.losingBits(h.fd, r.who, r.who.UID != 0, func() error { // the kernel leaves it to the file system, but does not say who may keep them
		_, err := retry(func() (int, error) { return 0, unix.Fallocate(h.fd, mode, off, n) })
		return err
	})
}

// opLseek: handle, offset, whence → offset. Only for data and holes; the position itself means nothing here.
func (s *Server) opLseek(r *request) error {
	id, off, whence := r.d.U64(), r.d.I64(), r.d.U32()
	if err := r.end(); err != nil {
		return err
	}
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return unix.EINVAL
	}
	h, err := r.fileHandle(s, id)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(h)
	n, err := unix.Seek(h.fd, off, int(whence))
	if err != nil {
		return err
	}
	r.e.I64(n)
	return nil
}

// opCopyRange: handle, offset, other node, its handle, its offset, length → count
func (s *Server) opCopyRange(r *request) error {
	id, off, toNode, toID, toOff, n := r.d.U64(), r.d.I64(), r.d.U64(), r.d.U64(), r.d.I64(), r.d.U64()
	if err := r.end(); err != nil {
		return err
	}
	h, err := r.fileHandle(s, id)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(h)
	to, err := s.tab.handle(toID)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(to)
	if to.dir != nil || to.node.id != toNode {
		return unix.EBADF
	}
	got := 0
	err = s.losingBits(to.fd, r.who, r.who.UID != 0, func() error {
		got, err = unix.CopyFileRange(h.fd, &off, to.fd, &toOff, int(min(n, 64<<20)), 0)
		return err
	})
	if err != nil {
		return err
	}
	s.bytes.Add(uint64(got))
	r.e.U32(uint32(got))
	return nil
}
