package store

import (
	"context"
	"fmt"
)

// The methods of lazyfs.Watcher. They only mark.

// Opened is one open file or directory more.
func (s *Store) Opened(node uint64, write bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.opens[node]
	if o == nil {
		o = &opens{}
		s.opens[node] = o
		s.goals = append(s.goals, goal{kind: goalOpen, node: node})
	}
	o.all++
	if write {
		if o.write++; o.write == 1 {
			s.goals = append(s.goals, goal{kind: goalChanged, node: node})
		}
	}
	s.wakeUp()
}

// Closed is one less.
func (s *Store) Closed(node uint64, write bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.opens[node]
	if o == nil {
		return
	}
	o.all--
	if write {
		o.write--
	}
	if o.all <= 0 {
		delete(s.opens, node)
	}
	s.wakeUp()
}

// Wrote says that the contents in a range are others, or the size.
func (s *Store) Wrote(node uint64, off, end uint64) {
	s.change(node, func(o *object) {
		if o.isReg() {
			o.data.add(int64(off), int64(min(end, noEnd)))
			o.right = false
		}
		o.look = true
	})
}

// Changed says that attributes are others.
func (s *Store) Changed(node uint64) {
	s.change(node, func(o *object) { o.look, o.bare = true, false })
}

// Named says that a name has come, gone, or leads elsewhere.
func (s *Store) Named(dir uint64, name string) {
	s.change(dir, func(o *object) {
		o.relist, o.look = true, true
		if x := o.listing[name]; x != nil { // the kernel notes in a file's ctime that it has one name more or less
			x.look, x.own = true, true
			s.dirty[x] = struct{}{}
		}
	})
}

// Forgot says that the kernel has forgotten a node.
func (s *Store) Forgot(uint64) {}

func (s *Store) change(node uint64, fn func(*object)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.byNode[node]
	if _, ok := s.away[node]; ok && o == nil {
		return
	}
	if _, ok := s.strange[node]; !ok && (o == nil || !o.in) { // beside what is copied, until now
		s.strange[node] = struct{}{}
		s.goals = append(s.goals, goal{kind: goalChanged, node: node})
		s.wakeUp()
	}
	if o == nil {
		return
	}
	fn(o)
	o.own, o.suspect = true, false // it was the tree that a look at the source may have seen before this
	s.dirty[o] = struct{}{}
	s.wakeUp()
}

// reopened marks what the tree has open since before this daemon: all that the source has open for it and its predecessors.
func (s *Store) reopened(ctx context.Context) error {
	list, err := s.o.Remote.Opens(ctx)
	if err != nil {
		return fmt.Errorf("find what is open: %w", err)
	}
	for _, x := range list {
		for i := range x.All {
			s.Opened(x.Node, i < x.Write)
		}
	}
	return nil
}
