package remotefs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// FileID is a file at the source.
type FileID struct{ Dev, Ino uint64 }

// opWriters: count × node → count × (node, who). Only those that somebody can write.
func (s *Server) opWriters(r *request) error {
	n := r.d.Count(8)
	if n > wire.MaxFileStamps {
		return errProtocol
	}
	var files []FileID
	nodes := map[FileID]uint64{}
	for range n {
		id := r.d.U64()
		if n, err := s.tab.get(id); err == nil {
			f := FileID{n.key.dev, n.key.ino}
			s.tab.put(n)
			files = append(files, f)
			nodes[f] = id
		}
	}
	if err := r.end(); err != nil {
		return err
	}
	var found map[FileID]string
	if s.writers != nil {
		var err error
		if found, err = s.writers(files); err != nil {
			return err
		}
	}
	count := uint32(0)
	at := len(r.e.B)
	r.e.U32(0)
	for f, who := range found {
		if id, ok := nodes[f]; ok && len(r.e.B) < wire.MaxFileDir {
			r.e.U64(id)
			r.e.String(who[:min(len(who), wire.MaxFileName)])
			count++
		}
	}
	r.e.B[at], r.e.B[at+1], r.e.B[at+2], r.e.B[at+3] = byte(count>>24), byte(count>>16), byte(count>>8), byte(count)
	return nil
}

// opOpens → count × (node, handles, of which can write): what is open
func (s *Server) opOpens(r *request) error {
	if err := r.end(); err != nil {
		return err
	}
	type opens struct{ all, write uint32 }
	open := map[uint64]*opens{}
	s.tab.mu.Lock()
	defer s.tab.mu.Unlock()
	for _, h := range s.tab.handles {
		o := open[h.node.id]
		if o == nil {
			o = &opens{}
			open[h.node.id] = o
		}
		o.all++
		if flags, err := unix.FcntlInt(uintptr(h.fd), unix.F_GETFL, 0); err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY {
			o.write++
		}
	}
	if len(open) > wire.MaxFileOpens {
		return fmt.Errorf("%d files are open: %w", len(open), unix.E2BIG)
	}
	r.e.U32(uint32(len(open)))
	for id, o := range open {
		r.e.U64(id)
		r.e.U32(o.all)
		r.e.U32(o.write)
	}
	return nil
}

// opRemove: name, node, attributes →. Removes a name of the directory, if it is this node's and the node's size and times are still these; a directory
// if it is empty. That there is no such name is no error.
func (s *Server) opRemove(r *request) error {
	name, err := r.dirAndName()
	if err != nil {
		return err
	}
	id := r.d.U64()
	var want wire.FileAttr
	want.Get(r.d)
	if err := r.end(); err != nil {
		return err
	}
	fd, err := s.walk(r.node.fd, name)
	if errors.Is(err, unix.ENOENT) { // as it shall be: a server before this one may have done it, and died
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	n, err := s.tab.get(id)
	if err != nil {
		return err
	}
	defer s.tab.put(n)
	a, k, _, err := s.tab.stat(fd)
	if err != nil {
		return err
	}
	flags := 0
	switch {
	case k != n.key:
		return fmt.Errorf("%q is another file now: %w", name, unix.ESTALE)
	case n.mode == unix.S_IFDIR:
		flags = unix.AT_REMOVEDIR
	case a.Size != want.Size || a.Mtime != want.Mtime:
		return fmt.Errorf("%q has been changed since it was copied: %w", name, unix.EBUSY)
	}
	return unix.Unlinkat(r.node.fd, name, flags)
}
