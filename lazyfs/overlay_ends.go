package lazyfs

import (
	"strings"
	"syscall"

	"github.com/lazymig/lazymig/wire"
)

// addLocalFiles puts files of the target's own into the overlay.
func (o *overlay) addLocalFiles(files map[string][]byte) error {
	root := wire.FileCaller{}
	for path, data := range files {
		dir := uint64(wire.FileRootNode)
		parts := strings.Split(strings.Trim(path, "/"), "/")
		for _, p := range parts[:len(parts)-1] {
			e, kind, err := o.lookup(dir, p)
			if err != nil {
				return err
			}
			if kind != nameOwn {
				var found bool
				if e, found, err = o.base(root, dir, p); err != nil {
					return err
				} else if !found {
					e, err = o.make(root, dir, p, newLocal{mode: syscall.S_IFDIR | 0o755})
					if err != nil {
						return err
					}
				}
			}
			dir = e.Node // its lookup is kept until the end: there are few
		}
		last := parts[len(parts)-1]
		if _, kind, _, err := o.at(root, dir, last, false); err == nil {
			o.hide(dir, last, kind, 0)
		}
		e, err := o.make(root, dir, last, newLocal{mode: syscall.S_IFREG | 0o600})
		if err != nil {
			return err
		}
		if _, err := o.write(0, e.Node, data, 0, false); err != nil {
			return err
		}
		o.forgetLocal(e.Node, 1)
	}
	return nil
}

// granted ends the overlay.
func (f *fsys) granted() {
	o := f.ov
	o.grant.Lock()
	if o.isGrant.Load() {
		o.grant.Unlock()
		return
	}
	o.isGrant.Store(true)
	tell := f.seeds.granted()
	o.grant.Unlock()
	tell()
	o.mu.Lock()
	names := o.names
	o.names = map[nameKey]*name{}
	o.mu.Unlock()
	var stale []uint64
	for k, x := range names {
		o.unlinked(x.node)
		o.unpin(k.dir)
		if x.was != 0 {
			stale = append(stale, x.was)
		}
		if x.node != 0 && !isLocal(x.node) {
			stale = append(stale, x.node)
		}
	}
	// The kernel asks again for each of these names by itself, they were never valid for any time.
	for _, n := range stale {
		f.dev.invalInode(n, attrOnly)
	}
}
