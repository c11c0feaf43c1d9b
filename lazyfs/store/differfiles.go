package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// FilesDiffer is Differs for single files, which lie in directories of any size: nothing else in these is looked at. A file that either side has not got is no difference,
// nor is what is no file at the source.
func FilesDiffer(ctx context.Context, r Remote, own string, paths []string, most int) ([]Undecided, error) {
	d := &fileDiffer{s: &Store{o: Options{Own: own, Remote: r}}, dirs: map[string]uint64{"/": wire.FileRootNode}}
	defer func() { r.Forget(d.held) }()
	type there struct {
		path  string
		entry wire.FileEntry
	}
	var files []there
	for _, p := range paths {
		p = path.Clean(p)
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(own, p), &st) != nil {
			continue // it is not in the way
		}
		e, err := d.find(ctx, p)
		if isGone(err) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("compare %s: %w", p, err)
		}
		if e.Attr.Mode&unix.S_IFMT == unix.S_IFREG {
			files = append(files, there{p, e})
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []Undecided
	var failed error
	slots := make(chan struct{}, atOnce)
	for _, f := range files {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			why, err := d.compare(ctx, f.path, f.entry)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("compare %s: %w", f.path, err))
			} else if why != "" {
				all = append(all, Undecided{f.path, why})
			}
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b Undecided) int { return strings.Compare(a.Path, b.Path) })
	return all[:min(len(all), most)], failed
}

type fileDiffer struct {
	s    *Store
	dirs map[string]uint64 // nodes that have been looked up
	held []wire.FileForget
}

func (d *fileDiffer) find(ctx context.Context, p string) (e wire.FileEntry, err error) {
	up := path.Dir(p)
	node, ok := d.dirs[up]
	if !ok {
		x, err := d.find(ctx, up)
		if err != nil {
			return e, err
		}
		node = x.Node
		d.dirs[up] = node
	}
	if e, err = d.s.o.Remote.Lookup(ctx, nobody, node, path.Base(p)); err == nil {
		d.held = append(d.held, wire.FileForget{Node: e.Node, Count: 1})
	}
	return e, err
}

// compare says in what a file differs from the target's own of the same path; empty: in nothing.
func (d *fileDiffer) compare(ctx context.Context, p string, e wire.FileEntry) (string, error) {
	ours := d.s.own(p)
	var st unix.Stat_t
	if err := unix.Lstat(ours, &st); err != nil {
		return "", nil //nolint:nilerr // it has just been removed
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "is of another kind on the target", nil
	case uint64(st.Size) != e.Attr.Size:
		return fmt.Sprintf("has %d bytes on the target, and %d here", st.Size, e.Attr.Size), nil
	case st.Mode != e.Attr.Mode || st.Uid != e.Attr.UID || st.Gid != e.Attr.GID:
		return fmt.Sprintf("is %o of %d:%d on the target, and %o of %d:%d here", st.Mode&0o7777, st.Uid, st.Gid, e.Attr.Mode&0o7777, e.Attr.UID, e.Attr.GID), nil
	}
	same, _, err := d.s.sameAsOurs(ctx, e.Node, ours, st.Size)
	if err == nil && !same {
		return "is another on the target", nil
	}
	return "", err
}
