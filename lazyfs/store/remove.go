package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/lazymig/lazymig/wire"
)

// Removed is what became of files at the source.
type Removed struct {
	Files int         `json:"files"` // names that are gone, without directories
	Kept  []Undecided `json:"kept,omitempty"`
}

// RemoveSource removes trees that have moved from the source. After Settle, and when the tree lives on the copies: each is on the target's disk and has
// been compared then. What is not in the store, or was changed at the source since, stays.
func (s *Store) RemoveSource(ctx context.Context, paths []string) (*Removed, error) {
	s.pass.Lock()
	defer s.pass.Unlock()
	if s.byIno == nil {
		return nil, errors.New("remove files at the source: they have not been settled")
	}
	r := &Removed{}
	for _, p := range paths {
		p = path.Clean("/" + p)
		up := s.root
		for name := range strings.SplitSeq(strings.Trim(path.Dir(p), "/"), "/") {
			if up != nil && name != "" {
				up = up.applied[name]
			}
		}
		if up == nil || up.applied[path.Base(p)] == nil {
			r.Kept = append(r.Kept, Undecided{p, "has not moved"})
			continue
		}
		if err := s.removeTree(ctx, up, path.Base(p), up.applied[path.Base(p)], p, r); err != nil {
			return r, fmt.Errorf("remove files at the source: %w", err)
		}
	}
	return r, nil
}

func (s *Store) removeTree(ctx context.Context, up *object, name string, o *object, p string, r *Removed) error {
	if !o.stamped || o.isDir() && o.how != howMove || o.declared {
		r.Kept = append(r.Kept, Undecided{p, "has not moved as a whole"})
		return nil
	}
	for _, n := range slices.Sorted(maps.Keys(o.applied)) {
		if err := s.removeTree(ctx, o, n, o.applied[n], path.Join(p, n), r); err != nil {
			return err
		}
	}
	err := s.o.Remote.Remove(ctx, nobody, up.node, name, o.node, o.attr)
	switch {
	case err == nil:
		if !o.isDir() {
			r.Files++
		}
	case wire.ErrnoOf(err) != 0: // it is another now, or may not be removed
		r.Kept = append(r.Kept, Undecided{p, err.Error()})
	default:
		return err
	}
	return nil
}
