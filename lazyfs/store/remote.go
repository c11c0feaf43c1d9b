package store

import (
	"context"
	"path"
	"slices"
	"strings"
)

// What stays at the source (Want.Remote) is an empty directory here, over which its place at the source will be mounted.

// stays says whether a path is in what stays.
func (s *Store) stays(p string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.remote, func(dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") })
}

// reachRemote lets a directory stay.
func (s *Store) reachRemote(ctx context.Context, p string) error {
	if p == "/" || kernelDirs[strings.SplitN(p, "/", 3)[1]] {
		s.plan.bad[p] = "can't stay at the source"
		return nil
	}
	w, err := s.walk(ctx, path.Dir(p), true)
	switch {
	case isGone(err):
		s.plan.bad[p] = "is to stay at the source, but is not there"
		return nil
	case err != nil:
		return err
	case w.at != "":
		s.plan.bad[p] = "is to stay at the source, but " + w.at + " is the target's own, or stays itself"
		return nil
	}
	s.need(w.up, w.o)
	if w.o.listing == nil {
		if err := s.list(ctx, w.o); err != nil {
			return err
		}
	}
	x := w.o.listing[path.Base(p)]
	if x == nil || !x.isDir() {
		s.plan.bad[p] = "is to stay at the source, but is no directory there"
		return nil
	}
	for _, d := range append(w.way, w.o) {
		d.must = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x.must, x.declared = true, true
	s.setLocked(x, howBind)
	s.plan.changed[w.o] = struct{}{}
	return nil
}
