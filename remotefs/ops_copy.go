package remotefs

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// digesting bounds how many files are hashed at a time: the tree's own requests need the processors, too.
var digesting = make(chan struct{}, 2)

// unclear is how long after a change another one may not be seen in the times of a file: the kernel's clock for them ticks (fs/inode.c,
// current_time; finer since Linux 6.13).
const unclear = 20 * time.Millisecond

// opExtents: handle, start, end → extents that hold data, how far the list goes
func (s *Server) opExtents(r *request) error {
	id, off, end := r.d.U64(), r.d.I64(), r.d.I64()
	if err := r.end(); err != nil {
		return err
	}
	if off < 0 || end < off {
		return unix.EINVAL
	}
	h, err := r.fileHandle(s, id)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(h)
	var list []wire.FileExtent
	for off < end && len(list) < wire.MaxFileExtents {
		data, err := unix.Seek(h.fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			off = end
			break
		}
		if err != nil {
			return fmt.Errorf("find data: %w", err)
		}
		hole, err := unix.Seek(h.fd, data, unix.SEEK_HOLE)
		if err != nil && !errors.Is(err, unix.ENXIO) { // ENXIO: truncated meanwhile
			return fmt.Errorf("find hole: %w", err)
		}
		if err != nil {
			off = end
			break
		}
		off = min(hole, end)
		list = append(list, wire.FileExtent{Start: data, End: off})
	}
	r.e.I64(off)
	r.e.U32(uint32(len(list)))
	for _, x := range list {
		r.e.I64(x.Start)
		r.e.I64(x.End)
	}
	return nil
}

// opSum: handle, start, length → digest, attributes, settled. Settled: nothing has changed while it was made, and the
// last change was so long ago that the next one will show in the times.
func (s *Server) opSum(r *request) error {
	id, off, n := r.d.U64(), r.d.I64(), r.d.I64()
	if err := r.end(); err != nil {
		return err
	}
	if off < 0 || off%wire.FileBlock != 0 || n < 0 || n > wire.MaxFileSum || off > math.MaxInt64-n {
		return unix.EINVAL
	}
	h, err := r.fileHandle(s, id)
	if err != nil {
		return err
	}
	defer s.tab.putHandle(h)
	digesting <- struct{}{}
	defer func() { <-digesting }()
	before, _, _, err := s.tab.stat(h.fd)
	if err != nil {
		return err
	}
	sum, err := Digest(h.fd, off, n)
	if err != nil {
		return err
	}
	a, _, _, err := s.tab.stat(h.fd)
	if err != nil {
		return err
	}
	r.e.B = append(r.e.B, sum[:]...)
	a.Put(&r.e)
	r.e.Bool(before.Size == a.Size && before.Mtime == a.Mtime && before.Ctime == a.Ctime && isClear(a.Ctime))
	return nil
}

// isClear says that a change from now on will have another time than t.
func isClear(t wire.FileTime) bool { return time.Since(time.Unix(t.Sec, int64(t.Nsec))) > unclear }

// opStamps: count × node → count × (attributes, settled). A node that is gone has inode 0.
func (s *Server) opStamps(r *request) error {
	n := r.d.Count(8)
	if n > wire.MaxFileStamps {
		return errProtocol
	}
	ids := make([]uint64, n)
	for i := range ids {
		ids[i] = r.d.U64()
	}
	if err := r.end(); err != nil {
		return err
	}
	for _, id := range ids {
		var a wire.FileAttr
		if n, err := s.tab.get(id); err == nil {
			a, _, _, err = s.tab.stat(n.fd)
			s.tab.put(n)
			if err != nil {
				return err
			}
		}
		a.Put(&r.e)
		r.e.Bool(isClear(a.Ctime))
	}
	return nil
}

// opPath → path below the root; ENOENT if it has no name that is known
func (s *Server) opPath(r *request) error {
	if err := r.end(); err != nil {
		return err
	}
	p, err := s.pathOf(r.node)
	if err != nil {
		return err
	}
	r.raw = []byte(p)
	return nil
}

// pathOf asks the kernel for the name that the node was reached by, and looks whether it is still there: a name may have come in its
// place, or have always been called "x (deleted)".
func (s *Server) pathOf(n *node) (string, error) {
	root, err := s.tab.get(wire.FileRootNode)
	if err != nil {
		return "", err
	}
	defer s.tab.put(root)
	if n == root {
		return "/", nil
	}
	base, err := s.link(root.fd)
	if err != nil {
		return "", err
	}
	p, err := s.link(n.fd)
	if err != nil {
		return "", err
	}
	rel, ok := strings.CutPrefix(p, strings.TrimSuffix(base, "/")+"/")
	if !ok || rel == "" || len(rel) >= wire.MaxFilePath {
		return "", fmt.Errorf("path of node %d: %w", n.id, unix.ENOENT)
	}
	fd, err := s.walk(root.fd, rel)
	if err != nil {
		return "", fmt.Errorf("path of node %d: %w", n.id, unix.ENOENT)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, k, _, err := s.tab.stat(fd); err != nil || k != n.key {
		return "", fmt.Errorf("path of node %d: %w", n.id, unix.ENOENT)
	}
	return "/" + rel, nil
}

func (s *Server) link(fd int) (string, error) {
	b := make([]byte, wire.MaxFilePath)
	n, err := unix.Readlinkat(s.proc, strconv.Itoa(fd), b)
	if err != nil {
		return "", fmt.Errorf("read path: %w", err)
	}
	return string(b[:n]), nil
}
