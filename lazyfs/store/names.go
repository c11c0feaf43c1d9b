package store

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

var nobody = wire.FileCaller{} // the source's server acts as root for us

// list reads the names of a directory and makes objects of them.
func (s *Store) list(ctx context.Context, o *object) error {
	s.mu.Lock()
	o.relist = false
	s.mu.Unlock()
	err := s.readNames(ctx, o)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if isGone(err) { // removed, and so all that was in it; the directory above tells
		o.listing = map[string]*object{}
		return nil
	}
	o.relist = true
	s.dirty[o] = struct{}{}
	return err
}

func (s *Store) readNames(ctx context.Context, o *object) error {
	a, err := s.o.Remote.GetAttr(ctx, o.node) // before: what is made by others while it is read shows in a later time
	if err != nil {
		return fmt.Errorf("list %s: %w", s.path(o), err)
	}
	h, err := s.o.Remote.OpenDir(ctx, nobody, o.node)
	if err != nil {
		return fmt.Errorf("list %s: %w", s.path(o), err)
	}
	defer s.o.Remote.Release(o.node, h)
	var all []wire.FileDirent
	for off := uint64(0); ; {
		ents, eof, err := s.o.Remote.ReadDir(ctx, o.node, h, off, wire.MaxFileDir/2, true)
		if err != nil {
			return fmt.Errorf("list %s: %w", s.path(o), err)
		}
		all = append(all, ents...)
		if eof || len(ents) == 0 {
			break
		}
		off = ents[len(ents)-1].Off
	}
	names := make(map[string]*object, len(all))
	var extra []wire.FileForget
	for _, e := range all {
		if e.Name == "." || e.Name == ".." || o == s.root && e.Name == hiddenDir {
			continue
		}
		if e.Entry.Node == 0 { // gone, or it could not be looked at just then
			if e.Entry, err = s.o.Remote.Lookup(ctx, nobody, o.node, e.Name); isGone(err) {
				continue
			} else if err != nil {
				return fmt.Errorf("look up %q: %w", e.Name, err)
			}
		}
		x, known := s.meet(e.Entry)
		if known {
			extra = append(extra, wire.FileForget{Node: e.Entry.Node, Count: 1})
		}
		names[e.Name] = x
	}
	s.o.Remote.Forget(extra)
	s.mu.Lock()
	defer s.mu.Unlock()
	o.listing, o.listed = names, a.Mtime
	return nil
}

// meet is the object of an entry, whose lookup it takes unless it has one (known).
func (s *Store) meet(e wire.FileEntry) (o *object, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o = s.byNode[e.Node]; o != nil {
		known = o.held
		o.held = true
		return o, known
	}
	return s.newLocked(e.Node, e.Attr, true), false
}

// newLocked makes an object of what has been looked at.
func (s *Store) newLocked(node uint64, a wire.FileAttr, held bool) *object {
	o := &object{
		node: node, ino: a.Ino, typ: a.Mode & unix.S_IFMT, rdev: a.Rdev, held: held, fd: -1, names: map[place]struct{}{},
		attr: a, look: true, bare: a.Flags&wire.FileBare != 0,
	}
	if o.isDir() {
		o.applied = map[string]*object{}
	}
	if o.isReg() {
		o.data.add(0, noEnd)
	}
	if _, ok := s.strange[node]; ok { // it was changed after it was looked at, maybe
		o.bare, o.own = false, true
	}
	s.byNode[node] = o
	return o
}

// wanted are the names that the copy of a directory shall have.
func (s *Store) wanted(o *object) map[string]*object {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := make(map[string]*object, len(o.listing))
	for name, x := range o.listing {
		switch {
		case o.how == howBind, o.how == howNone:
		case x.isDir() && x.how == howNone && o.how == howExpand:
		case o.only != "" && o.only != name:
		case o.how == howExpand && o.leaves(name, x):
		default:
			w[name] = x
			if x.isDir() && (x.how == howNone || x.how == howExpand && x.only == "" && o.how == howMove) { // what was used before all comes, too
				x.how = howMove
				s.plan.changed[x] = struct{}{}
				x.relist = true
				s.dirty[x] = struct{}{}
			}
		}
	}
	return w
}

// apply gives copies the names that they shall have, in the directories where these may have changed. All names that are wrong go first,
// to the hidden directory if the file has no other; then nothing is in the way of the right ones, whatever was exchanged with what.
func (s *Store) apply(ctx context.Context) error {
	dirs := make([]*object, 0, len(s.plan.changed))
	for d := range s.plan.changed {
		if d.listing != nil {
			dirs = append(dirs, d)
		}
	}
	wanted := map[*object]map[string]*object{}
	for _, d := range dirs {
		wanted[d] = s.wanted(d)
		for name, x := range d.applied {
			if wanted[d][name] != x {
				if err := s.park(d, name, x); err != nil {
					return err
				}
			}
		}
	}
	// One that has no copy yet gets it when its own name is given.
	for len(dirs) > 0 {
		var later []*object
		for _, d := range dirs {
			if !d.made {
				later = append(later, d)
				continue
			}
			for name, x := range wanted[d] {
				if d.applied[name] == x {
					continue
				}
				if err := s.place(ctx, d, name, x); err != nil {
					return err
				}
			}
			delete(s.plan.changed, d)
		}
		if len(later) == len(dirs) { // nothing leads to these, they have gone or are to come
			for _, d := range later {
				if d.gone {
					delete(s.plan.changed, d)
				}
			}
			return nil
		}
		dirs = later
	}
	return nil
}

// park takes a name away.
func (s *Store) park(d *object, name string, x *object) error {
	s.touchDir(d)
	var err error
	if len(x.names) == 1 && !x.hidden {
		err = unix.Renameat(d.fd, name, s.hidden, x.hiddenName())
		x.hidden = err == nil
		s.parked[x] = struct{}{}
	} else {
		err = unix.Unlinkat(d.fd, name, 0) // a directory has but one name
	}
	if err != nil {
		return fmt.Errorf("take name %q from the copy: %w", name, err)
	}
	delete(d.applied, name)
	delete(x.names, place{d, name})
	return nil
}

// place gives a name.
func (s *Store) place(ctx context.Context, d *object, name string, x *object) error {
	if !x.made {
		target := ""
		if x.typ == unix.S_IFLNK {
			b, err := s.o.Remote.Readlink(ctx, x.node)
			if isGone(err) {
				return nil // its directory will be listed again
			} else if err != nil {
				return fmt.Errorf("read link %q: %w", name, err)
			}
			target = string(b)
		}
		if err := s.make(x, target); err != nil {
			return err
		}
	}
	s.touchDir(d)
	from, old, err := s.where(x)
	if err != nil {
		return err
	}
	switch {
	case x.hidden:
		err = unix.Renameat(from, old, d.fd, name)
		x.hidden = x.hidden && err != nil
	case x.isDir(): // it was seen in its new place before it was missed in the old one
		err = unix.Renameat(from, old, d.fd, name)
		for p := range x.names {
			delete(p.dir.applied, p.name)
			s.touchDir(p.dir)
		}
		clear(x.names)
	default:
		err = unix.Linkat(from, old, d.fd, name, 0)
	}
	if err != nil {
		return fmt.Errorf("give the copy its name %q: %w", name, err)
	}
	d.applied[name] = x
	x.names[place{d, name}] = struct{}{}
	delete(s.parked, x)
	return nil
}

// touchDir notes that the times of a copied directory are no longer the source's.
func (s *Store) touchDir(d *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.look = true
	s.touched[d]++
	s.dirty[d] = struct{}{}
}

// drop takes away copies that have no name and that nobody has open any more.
func (s *Store) drop() error {
	var f []wire.FileForget
	defer func() { s.o.Remote.Forget(f) }()
	for {
		o := s.dropOne()
		if o == nil {
			return nil
		}
		if o.held {
			f = append(f, wire.FileForget{Node: o.node, Count: 1})
		}
		for name, x := range o.applied { // of a directory that was removed, or moved to where nothing comes from
			if err := s.park(o, name, x); err != nil {
				return err
			}
		}
		flags := 0
		if o.isDir() {
			flags = unix.AT_REMOVEDIR
			_ = unix.Close(o.fd)
			o.fd = -1
		}
		if err := unix.Unlinkat(s.hidden, o.hiddenName(), flags); err != nil {
			return fmt.Errorf("remove copy of inode %d: %w", o.ino, err)
		}
	}
}

// dropOne forgets an object that nobody needs.
func (s *Store) dropOne() *object {
	s.mu.Lock()
	defer s.mu.Unlock()
	for o := range s.parked {
		if s.opens[o.node] == nil {
			delete(s.parked, o)
			delete(s.byNode, o.node)
			delete(s.dirty, o)
			delete(s.touched, o)
			o.gone = true
			return o
		}
	}
	return nil
}

// isGone says that the source no longer has what was asked for.
func isGone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) }
