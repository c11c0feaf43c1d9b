package store

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// round does all that is to be done as it stands: what is new is found out, names first, then what the files hold. With pass.
func (s *Store) round(ctx context.Context) error {
	if err := s.relist(ctx); err != nil {
		return err
	}
	if err := s.decide(ctx); err != nil {
		return err
	}
	if err := s.relist(ctx); err != nil {
		return err
	}
	if err := s.rename(ctx); err != nil {
		return err
	}
	if err := s.visitAll(ctx, func(o *object) bool { return !o.isDir() }); err != nil {
		return err
	}
	if err := s.visitAll(ctx, (*object).isDir); err != nil { // after what is made and removed in them, which changes their times
		return err
	}
	s.tree.Lock()
	defer s.tree.Unlock()
	return s.drop()
}

// rename gives the copies their names.
func (s *Store) rename(ctx context.Context) error {
	s.tree.Lock()
	defer s.tree.Unlock()
	if err := s.apply(ctx); err != nil {
		return err
	}
	return s.missed(ctx)
}

// relist lists the directories whose names have changed, and those in them that are to come, each once: where compilers work names change faster than they can be
// listed. What has changed since is for the next round.
func (s *Store) relist(ctx context.Context) error {
	listed := map[*object]how{}
	for {
		var dirs []*object
		s.mu.Lock()
		for o := range s.dirty {
			if o.isDir() && o.relist && (o.how == howMove || o.how == howExpand) {
				if was, ok := listed[o]; !ok || was != o.how {
					dirs = append(dirs, o)
					listed[o] = o.how
				}
			}
		}
		s.mu.Unlock()
		if len(dirs) == 0 {
			return nil
		}
		for _, d := range dirs {
			s.plan.changed[d] = struct{}{}
		}
		if err := s.each(ctx, dirs, s.list); err != nil {
			return err
		}
		for _, d := range dirs {
			s.wanted(d) // directories in it are to be listed, too
		}
	}
}

// visitAll brings all dirty objects of a kind up to date, some at a time.
func (s *Store) visitAll(ctx context.Context, kind func(*object) bool) error {
	var list []*object
	s.mu.Lock()
	for o := range s.dirty {
		if !o.dirtyLocked() {
			delete(s.dirty, o)
		} else if o.made && kind(o) {
			list = append(list, o)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b *object) int { // what is open first
		return cmp.Or(-cmp.Compare(s.opensOf(a), s.opensOf(b)), cmp.Compare(a.node, b.node))
	})
	return s.each(ctx, list, s.visit)
}

func (s *Store) opensOf(o *object) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.opens[o.node]; x != nil {
		return x.all
	}
	return 0
}

const atOnce = 32 // files that are copied at a time

// each runs fn for all of list, some at a time, and gives the first error.
func (s *Store) each(ctx context.Context, list []*object, fn func(context.Context, *object) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for _, o := range list {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fn(ctx, o); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
