package store

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// walked is where a walk came to.
type walked struct {
	up, o    *object
	way      []*object // directories down to up
	at       string    // there the target's own begins, or what stays at the source
	declared bool      // somebody has said so
	pending  bool      // what a directory on the way will be is not known yet
}

// walk goes down to a path and takes what it comes through into the store. write: something there is or was written, so that no directory on
// the way can be the target's own, unless it was declared to be.
func (s *Store) walk(ctx context.Context, p string, write bool) (w walked, err error) {
	w.o = s.root
	done := "/"
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" {
			break
		}
		if !w.o.isDir() {
			return w, fmt.Errorf("%s is no directory: %w", done, unix.ENOENT)
		}
		if w.o.only != "" && w.o.only != name {
			return walked{at: done, declared: true}, nil
		}
		s.need(w.up, w.o)
		s.mu.Lock()
		stale := w.o.listing == nil || w.o.relist || w.o.listing[name] == nil
		s.mu.Unlock()
		if stale {
			if err := s.list(ctx, w.o); err != nil {
				return w, err
			}
			s.plan.changed[w.o] = struct{}{}
		}
		x := w.o.listing[name]
		if x == nil {
			return w, fmt.Errorf("%s: %w", p, unix.ENOENT)
		}
		w.way = append(w.way, w.o)
		w.up, w.o = w.o, x
		done = path.Join(done, name)
		if x.how == howNone && x.isDir() && !write {
			ok, err := s.resolve(ctx, w.up, x, name, done)
			if err != nil {
				return w, err
			}
			if !ok && x.survey == nil {
				return walked{pending: true}, nil
			}
		}
		if x.how == howBind {
			if !write || x.declared || x.from == "" {
				return walked{at: done, declared: x.declared || x.from == ""}, nil
			}
			s.mu.Lock()
			s.setLocked(x, howExpand) // it is no longer the same
			s.mu.Unlock()
		}
	}
	return w, nil
}

// reachLocal lets what is the target's own stand at a path.
func (s *Store) reachLocal(ctx context.Context, p string) error {
	if p == "/" {
		s.plan.bad[p] = "the root itself can't be declared to be local"
		return nil
	}
	w, err := s.walk(ctx, path.Dir(p), true)
	switch {
	case isGone(err), err == nil && w.at != "": // the tree does not find it either; in another one
		return nil
	case err != nil:
		return err
	}
	s.need(w.up, w.o)
	if w.o.listing == nil {
		if err := s.list(ctx, w.o); err != nil {
			return err
		}
	}
	x := w.o.listing[path.Base(p)]
	st, err := os.Lstat(s.own(p))
	switch {
	case x == nil || x.typ == unix.S_IFLNK: // links come as they are
		return nil
	case err != nil || st.Sys().(*syscall.Stat_t).Mode&unix.S_IFMT != x.typ:
		s.plan.bad[p] = "is declared to be local, but this host has nothing of its kind there"
		return nil
	case x.must:
		s.plan.bad[p] = "is declared to be local, but the tree writes there, or something in it is to come along"
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x.from, x.declared = s.own(p), true
	s.setLocked(x, howBind)
	s.plan.changed[w.o] = struct{}{}
	return nil
}

// below is a goal in something of the target's own: what is open must be the same there, and nothing may have been changed. False: it is
// another, though nobody has declared it to be the target's.
func (s *Store) below(ctx context.Context, g goal, p string, w walked) (ok bool, err error) {
	if s.stays(p) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if g.kind <= goalChanged {
			s.away[g.node] = struct{}{}
			if x := s.opens[g.node]; x != nil {
				x.bound = true
			}
		}
		if g.kind == goalWhole {
			s.plan.bad[p] = "is to come along, but " + w.at + " stays at the source"
		}
		return true, nil
	}
	kernel := kernelDirs[strings.SplitN(p, "/", 3)[1]]
	if g.kind == goalOpen && !kernel {
		a, err := s.o.Remote.GetAttr(ctx, g.node)
		if err == nil {
			ok, err = s.sameOnce(ctx, g.node, s.own(p), a)
		}
		switch {
		case isGone(err):
			return true, nil
		case err != nil:
			return false, fmt.Errorf("compare %s: %w", p, err)
		case ok:
			s.bound[a.Ino] = p
		case !w.declared:
			return false, nil
		default:
			s.plan.bad[p] = "is in use, and the target's own is another"
		}
	}
	s.mu.Lock()
	if x := s.opens[g.node]; x != nil && g.kind <= goalChanged {
		x.bound = true
	}
	s.mu.Unlock()
	switch {
	case kernel:
	case g.kind == goalChanged:
		s.plan.bad[p] = "is written by the tree, but " + w.at + " is the target's own"
	case g.kind == goalWhole:
		s.plan.bad[p] = "is to come along, but " + w.at + " is the target's own"
	}
	return true, nil
}

// reachAlone is reachNameless for who does not hold tree.
func (s *Store) reachAlone(ctx context.Context, node uint64) error {
	s.tree.Lock()
	defer s.tree.Unlock()
	return s.reachNameless(ctx, node)
}

// reachNameless takes a file that is open and has no name.
func (s *Store) reachNameless(ctx context.Context, node uint64) error {
	s.mu.Lock()
	open, o := s.opens[node] != nil, s.byNode[node]
	s.mu.Unlock()
	if !open || o != nil && o.in {
		return nil
	}
	if o == nil {
		a, err := s.o.Remote.GetAttr(ctx, node)
		if isGone(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("look at node %d: %w", node, err)
		}
		s.mu.Lock()
		o = s.newLocked(node, a, false)
		o.bare = false
		s.mu.Unlock()
	}
	if err := s.make(o, ""); err != nil {
		return err
	}
	s.parked[o] = struct{}{}
	return nil
}

// missed takes what is open and has lost its name between one look and the next.
func (s *Store) missed(ctx context.Context) error {
	var nodes []uint64
	waiting := map[uint64]bool{}
	for _, g := range s.plan.waiting {
		waiting[g.node] = true
	}
	s.mu.Lock()
	for node, x := range s.opens {
		switch o := s.byNode[node]; {
		case x.bound, waiting[node], o != nil && o.in:
		case o == nil:
			s.goals = append(s.goals, goal{kind: goalOpen, node: node})
		default:
			nodes = append(nodes, node)
		}
	}
	s.mu.Unlock()
	for _, node := range nodes {
		if err := s.reachNameless(ctx, node); err != nil {
			return err
		}
	}
	return nil
}
