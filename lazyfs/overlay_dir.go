package lazyfs

import (
	"errors"
	"sort"
	"syscall"

	"github.com/lazymig/lazymig/wire"
)

// told is the errno that the source told, or 0.
func told(err error) syscall.Errno {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e.Errno
	}
	return 0
}

// errnoOf is the errno of the source or the overlay.
func errnoOf(err error) syscall.Errno {
	if e, ok := errors.AsType[errno](err); ok {
		return syscall.Errno(e)
	}
	return told(err)
}

func dots(node uint64) []wire.FileDirent {
	return []wire.FileDirent{{Name: ".", Ino: node, Type: syscall.S_IFDIR}, {Name: "..", Ino: node, Type: syscall.S_IFDIR}}
}

// list is a whole directory, of the source (whose handle is h) and the overlay.
func (o *overlay) list(dir, h uint64) ([]wire.FileDirent, error) {
	own := map[string]*name{}
	o.mu.Lock()
	for k, x := range o.names {
		if k.dir == dir {
			own[k.name] = x
		}
	}
	o.mu.Unlock()
	var all []wire.FileDirent
	if isLocal(dir) {
		all = dots(dir)
	} else {
		off := uint64(0)
		for {
			list, eof, err := o.f.remote.ReadDir(o.f.ctx, dir, h, off, wire.MaxFileDir, false)
			if err != nil {
				return nil, err
			}
			for _, e := range list {
				if own[e.Name] == nil {
					all = append(all, e)
				}
				off = e.Off
			}
			if eof || len(list) == 0 {
				break
			}
		}
	}
	n := len(all)
	for name, x := range own {
		if x.node == 0 {
			continue
		}
		var a wire.FileAttr
		var err error
		if isLocal(x.node) {
			a, err = o.attr(x.node)
		} else {
			a, err = o.f.remote.GetAttr(o.f.ctx, x.node)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, wire.FileDirent{Name: name, Ino: a.Ino, Type: a.Mode & syscall.S_IFMT})
	}
	sort.Slice(all[n:], func(i, j int) bool { return all[n+i].Name < all[n+j].Name })
	return all, nil
}

// empty checks that a directory has no names.
func (o *overlay) empty(dir uint64) error {
	var h uint64
	if !isLocal(dir) {
		var err error
		if h, err = o.f.remote.OpenDir(o.f.ctx, wire.FileCaller{}, dir); err != nil {
			return err
		}
		defer o.f.remote.Release(dir, h)
	}
	all, err := o.list(dir, h)
	if err == nil && len(all) > 2 {
		return errno(syscall.ENOTEMPTY)
	}
	return err
}
