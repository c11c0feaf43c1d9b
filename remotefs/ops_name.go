package remotefs

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// name takes a name and checks that it is one component below the node and nothing else.
func (r *request) name() (string, error) {
	s := r.d.String(4096)
	if err := r.d.Err(); err != nil {
		return "", fmt.Errorf("%w: %w", errProtocol, err)
	}
	switch {
	case len(s) > wire.MaxFileName:
		return "", unix.ENAMETOOLONG
	case s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\x00"):
		return "", fmt.Errorf("name %q: %w", s, unix.EINVAL)
	}
	return s, nil
}

// inside checks that the node is a directory whose insides are served.
func inside(n *node) error {
	if n.mode != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	if n.fs.hidden {
		return unix.ENOENT
	}
	return nil
}

// dirAndName is what begins most operations that change a directory.
func (r *request) dirAndName() (string, error) {
	name, err := r.name()
	if err != nil {
		return "", err
	}
	return name, inside(r.node)
}

// walk is openBelow; it waits for a descriptor.
func (s *Server) walk(dir int, rel string) (int, error) {
	return s.newFD(func() (int, error) { return openBelow(dir, rel) })
}

// openBelow opens what is below dir, whatever it is, and follows nothing.
func openBelow(dir int, rel string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		fd, err := unix.Openat2(dir, rel, &how)
		if !errors.Is(err, unix.EAGAIN) { // EAGAIN: a rename or mount somewhere raced with it
			return fd, err
		}
	}
}

// lookup makes a node of a name.
func (s *Server) lookup(r *request, dir *node, name string) (wire.FileEntry, error) {
	fd, err := s.walk(dir.fd, name)
	if err != nil {
		return wire.FileEntry{}, fmt.Errorf("%q: %w", name, err)
	}
	n, a, err := s.tab.add(fd)
	if err != nil {
		return wire.FileEntry{}, err
	}
	r.effects.looked = append(r.effects.looked, n.id)
	return wire.FileEntry{Node: n.id, Attr: a}, nil
}

func (s *Server) replyLookup(r *request, name string) error {
	ent, err := s.lookup(r, r.node, name)
	if err != nil {
		return err
	}
	ent.Put(&r.e)
	return nil
}

// opLookup: name → entry
func (s *Server) opLookup(r *request) error {
	name, err := r.dirAndName()
	if err != nil {
		return err
	}
	if err := r.end(); err != nil {
		return err
	}
	return s.replyLookup(r, name)
}

// opForget: count × (node, lookups). The node of the head is the root.
func (s *Server) opForget(r *request) error {
	n := r.d.Count(16)
	if n > wire.MaxForgets {
		return errProtocol
	}
	for range n {
		f := wire.FileForget{Node: r.d.U64(), Count: r.d.U64()}
		f.Count = s.tab.forget(f.Node, f.Count)
		r.effects.forgot = append(r.effects.forgot, f)
	}
	return r.end()
}

// create runs fn, which makes a file, as the caller.
func (s *Server) create(who wire.FileCaller, umask uint32, fn func() error) error {
	a := as{uid: who.UID, gid: who.GID, umask: umask, fsetid: true}
	err := s.cred.do(a, fn)
	if errors.Is(err, unix.EACCES) { // groups of one process of the tree that the server was not told
		a.override = true
		err = s.cred.do(a, fn)
	}
	return err
}

// opSymlink: name, target → entry
func (s *Server) opSymlink(r *request) error {
	name, err := r.dirAndName()
	if err != nil {
		return err
	}
	target := r.d.String(wire.MaxFileLink)
	if err := r.end(); err != nil {
		return err
	}
	if s.made(r, r.node.fd, name) {
		return s.replyLookup(r, name)
	}
	if err := s.create(r.who, 0, func() error { return unix.Symlinkat(target, r.node.fd, name) }); err != nil {
		return err
	}
	return s.replyLookup(r, name)
}

// opMknod: name, mode, umask, rdev → entry
func (s *Server) opMknod(r *request) error {
	name, err := r.dirAndName()
	if err != nil {
		return err
	}
	mode, umask, rdev := r.d.U32(), r.d.U32(), r.d.U32()
	if err := r.end(); err != nil {
		return err
	}
	if s.made(r, r.node.fd, name) {
		return s.replyLookup(r, name)
	}
	if err := s.create(r.who, umask, func() error { return unix.Mknodat(r.node.fd, name, mode, int(rdev)) }); err != nil {
		return err
	}
	return s.replyLookup(r, name)
}

// opMkdir: name, mode, umask → entry
func (s *Server) opMkdir(r *request) error {
	name, err := r.dirAndName()
	if err != nil {
		return err
	}
	mode, umask := r.d.U32(), r.d.U32()
	if err := r.end(); err != nil {
		return err
	}
	if s.made(r, r.node.fd, name) {
		return s.replyLookup(r, name)
	}
	if err := s.create(r.who, umask, func() error { return unix.Mkdirat(r.node.fd, name, mode&0o7777) }); err != nil {
		return err
	}
	return s.replyLookup(r, name)
}

// opUnlink: name →
func (s *Server) opUnlink(r *request) error { return s.unlink(r, 0) }

// opRmdir: name →
func (s *Server) opRmdir(r *request) error { return s.unlink(r, unix.AT_REMOVEDIR) }

func (s *Server) unlink(r *request, flags int) error {
	name, err := r.dirAndName()
	if err != nil {
		return err
	}
	if err := r.end(); err != nil {
		return err
	}
	if s.taken(r, r.node.fd, name) {
		return nil
	}
	return unix.Unlinkat(r.node.fd, name, flags)
}

// opRename: name, new directory, new name, flags →
func (s *Server) opRename(r *request) error {
	name, err := r.dirAndName()
	if err != nil {
		return err
	}
	dirID := r.d.U64()
	name2, err := r.name()
	if err != nil {
		return err
	}
	flags := r.d.U32()
	if err := r.end(); err != nil {
		return err
	}
	if flags&^uint32(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return unix.EINVAL
	}
	dir, err := s.tab.get(dirID)
	if err != nil {
		return err
	}
	defer s.tab.put(dir)
	if err := inside(dir); err != nil {
		return err
	}
	if s.taken(r, r.node.fd, name) {
		return nil
	}
	s.moving(r.node.fd, name, dir.fd, name2)
	if flags&unix.RENAME_EXCHANGE != 0 {
		s.moving(dir.fd, name2, r.node.fd, name)
	}
	return unix.Renameat2(r.node.fd, name, dir.fd, name2, uint(flags))
}

// moving writes a rename down before it takes place.
func (s *Server) moving(dir int, name string, dir2 int, name2 string) {
	if !s.tab.journal.on() {
		return
	}
	root, err := s.RootPath()
	from, ferr := pathOf(dir)
	to, terr := pathOf(dir2)
	if err := errors.Join(err, ferr, terr); err != nil { // out of descriptors it does not fail: readlink takes none
		s.log.Warn("write a rename down", "err", err)
		return
	}
	s.tab.journal.moved(path.Join(below(root, from), name), path.Join(below(root, to), name2))
}

// opLink: existing node, name → entry. The node of the head is the directory.
func (s *Server) opLink(r *request) error {
	old := r.d.U64()
	name, err := r.dirAndName()
	if err != nil {
		return err
	}
	if err := r.end(); err != nil {
		return err
	}
	n, err := s.tab.get(old)
	if err != nil {
		return err
	}
	defer s.tab.put(n)
	if n.fs.hidden {
		return unix.EPERM
	}
	if s.made(r, r.node.fd, name) {
		return s.replyLookup(r, name)
	}
	if err := unix.Linkat(n.fd, "", r.node.fd, name, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	return s.replyLookup(r, name)
}

// opReadlink → target
func (s *Server) opReadlink(r *request) error {
	if err := r.end(); err != nil {
		return err
	}
	if r.node.mode != unix.S_IFLNK {
		return unix.EINVAL
	}
	b := make([]byte, wire.MaxFileLink+1)
	n, err := unix.Readlinkat(r.node.fd, "", b)
	if err != nil {
		return err
	}
	r.raw = b[:n]
	return nil
}
