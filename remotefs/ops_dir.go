package remotefs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// dirState is where a directory handle stands: names read from the kernel and not sent yet. Positions are the
// file system's own (d_off), so they stay right while names come and go.
type dirState struct {
	mu   sync.Mutex
	next uint64 // position of the first of rest
	rest []byte // linux_dirent64 records
	buf  []byte
	eof  bool
}

// opOpenDir → handle
func (s *Server) opOpenDir(r *request) error {
	if err := r.end(); err != nil {
		return err
	}
	fd, err := s.openDir(r)
	if err != nil {
		return err
	}
	r.e.U64(s.newHandle(r, r.node, fd, true).id)
	return nil
}

func (s *Server) openDir(r *request) (int, error) {
	if r.node.mode != unix.S_IFDIR {
		return -1, unix.ENOTDIR
	}
	return s.reopen(r.node.fd, unix.O_RDONLY|unix.O_DIRECTORY)
}

// opReadDir: handle, position, size, with entries → end?, count, names. Each name with an entry counts as a lookup.
func (s *Server) opReadDir(r *request) error {
	id, off, size, plus := r.d.U64(), r.d.U64(), r.d.U32(), r.d.Bool()
	if err := r.end(); err != nil {
		return err
	}
	size = min(size, wire.MaxFileDir)
	if off > math.MaxInt64 {
		return unix.EINVAL
	}
	h, err := s.tab.handle(id)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(h)
	if h.dir == nil || h.node != r.node {
		return unix.EBADF
	}
	d := h.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.node.fs.hidden {
		r.e.Bool(true)
		r.e.U32(0)
		return nil
	}
	if d.buf == nil {
		d.buf = make([]byte, 32<<10)
	}
	if off != d.next || d.eof && len(d.rest) == 0 { // at the end: look again, names may have come
		if _, err := unix.Seek(h.fd, int64(off), unix.SEEK_SET); err != nil {
			return err
		}
		d.next, d.rest, d.eof = off, nil, false
	}
	r.e.Bool(false)
	r.e.U32(0)
	count := uint32(0)
	for {
		if len(d.rest) == 0 {
			n, err := retry(func() (int, error) { return unix.Getdents(h.fd, d.buf) })
			if err != nil {
				if count > 0 {
					break // told by the next request
				}
				return err
			}
			if n == 0 {
				d.eof = true
				break
			}
			d.rest = d.buf[:n]
		}
		ent, n, err := parseDirent(d.rest)
		if err != nil {
			return err
		}
		if count > 0 && len(r.e.B)+len(ent.Name)+32+wire.FileAttrSize > int(size) {
			break
		}
		if err := s.fill(r, r.node, &ent, plus); err != nil {
			return err
		}
		ent.Put(&r.e)
		count++
		d.rest, d.next = d.rest[n:], ent.Off
	}
	if d.eof && len(d.rest) == 0 {
		r.e.B[0] = 1
	}
	binary.BigEndian.PutUint32(r.e.B[1:], count)
	return nil
}

// fill adds to a name what the file system below does not tell.
func (s *Server) fill(r *request, dir *node, ent *wire.FileDirent, plus bool) error {
	ent.Ino = dir.fs.ino(ent.Ino)
	switch {
	case ent.Name == "..":
		if dir.id == wire.FileRootNode { // nothing is above
			a, _, _, err := s.tab.stat(dir.fd)
			if err != nil {
				return err
			}
			ent.Ino = a.Ino
		}
	case plus && ent.Name != ".":
		if e, err := s.lookup(r, dir, ent.Name); err == nil { // else it has gone, or can't be looked at
			ent.Entry = e
		}
	}
	return nil
}

// parseDirent reads one linux_dirent64: u64 ino, s64 off, u16 length, u8 type, name.
func parseDirent(b []byte) (wire.FileDirent, int, error) {
	const head = 19
	if len(b) < head {
		return wire.FileDirent{}, 0, fmt.Errorf("directory record of %d bytes: %w", len(b), unix.EIO)
	}
	n := int(binary.NativeEndian.Uint16(b[16:]))
	if n < head || n > len(b) {
		return wire.FileDirent{}, 0, fmt.Errorf("directory record of %d bytes: %w", n, unix.EIO)
	}
	name := b[head:n]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return wire.FileDirent{
		Ino: binary.NativeEndian.Uint64(b), Off: binary.NativeEndian.Uint64(b[8:]),
		Type: uint32(b[18]) << 12, Name: string(name),
	}, n, nil
}
