package lazyfs

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/lazymig/lazymig/wire"
)

// overlay is what the restore changes before the grant, and the local nodes that live on after it.
//
// A name in it is hidden, or leads to a local node, or to a node of the source (another name for it). covers says
// that the source has the name, too, so that it stays hidden when the overlay's goes. Nodes of the source that names
// or hidden names hang on are pinned: the kernel's forgets of them wait (refs.go).
type overlay struct {
	f     *fsys
	store string

	keptIn    string    // directory where all is kept for a successor; empty where there will be none. mu
	lock      *os.File  // that directory
	kept      keptState // as it was written last; mu
	keptNames bool      // state is written down as it is; mu

	grant   sync.RWMutex // read side: an operation before the grant
	isGrant atomic.Bool

	mu     sync.Mutex
	names  map[nameKey]*name
	refs   map[uint64]*ref
	locals map[uint64]*local
	next   uint64
}

type nameKey struct {
	dir  uint64
	name string
}

type name struct {
	node   uint64 // 0: hidden
	covers bool
	was    uint64 // hidden: the source's node, whose link count the kernel believes to be one less
}

type nameKind int

const (
	nameBase   nameKind = iota // the overlay knows nothing: ask the source
	nameHidden                 // does not exist
	nameOwn                    // the overlay's
)

func newOverlay(f *fsys, store string) *overlay {
	return &overlay{f: f, store: store, names: map[nameKey]*name{}, refs: map[uint64]*ref{}, locals: map[uint64]*local{}}
}

// enter begins an operation before the grant, or says false.
func (o *overlay) enter() bool {
	if o.isGrant.Load() {
		return false
	}
	o.grant.RLock()
	if o.isGrant.Load() {
		o.grant.RUnlock()
		return false
	}
	return true
}

func (o *overlay) leave() { o.grant.RUnlock() }

func (o *overlay) isGranted() bool { return o.isGrant.Load() }

// find looks into the overlay only. A local directory has nothing but the overlay's names.
func (o *overlay) find(dir uint64, n string) (*name, nameKind) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x := o.names[nameKey{dir, n}]
	switch {
	case x == nil && isLocal(dir):
		return nil, nameHidden
	case x == nil:
		return nil, nameBase
	case x.node == 0:
		return x, nameHidden
	}
	return x, nameOwn
}

// lookup answers the kernel for names that the overlay has.
func (o *overlay) lookup(dir uint64, n string) (wire.FileEntry, nameKind, error) {
	x, kind := o.find(dir, n)
	if kind != nameOwn {
		return wire.FileEntry{}, kind, nil
	}
	e, err := o.entry(x.node)
	return e, kind, err
}

// entry counts one lookup more of a node and tells its attributes.
func (o *overlay) entry(node uint64) (wire.FileEntry, error) {
	if isLocal(node) {
		o.mu.Lock()
		l := o.locals[node]
		if l == nil {
			o.mu.Unlock()
			return wire.FileEntry{}, errno(syscall.ESTALE)
		}
		l.lookups++
		l.kept = false
		o.mu.Unlock()
		a, err := o.attr(node)
		return wire.FileEntry{Node: node, Attr: a}, err
	}
	a, err := o.f.remote.GetAttr(o.f.ctx, node)
	if err != nil {
		return wire.FileEntry{}, err
	}
	o.extra(node)
	return wire.FileEntry{Node: node, Attr: a}, nil
}

// base asks the source for a name and keeps one lookup, if it is there. found is false where it is not.
func (o *overlay) base(who wire.FileCaller, dir uint64, n string) (e wire.FileEntry, found bool, err error) {
	if isLocal(dir) {
		return e, false, nil
	}
	who.Number = 0 // an operation of the overlay may ask several things
	e, err = o.f.remote.Lookup(o.f.ctx, who, dir, n)
	if told(err) == syscall.ENOENT {
		return e, false, nil
	}
	return e, err == nil, err
}

// free checks that a name may be made, and tells whether the source has it behind the overlay.
func (o *overlay) free(who wire.FileCaller, dir uint64, n string) (covers bool, err error) {
	x, kind := o.find(dir, n)
	switch kind {
	case nameOwn:
		return false, errno(syscall.EEXIST)
	case nameHidden:
		return x != nil && x.covers, nil
	}
	e, found, err := o.base(who, dir, n)
	if err != nil {
		return false, err
	}
	if found {
		o.f.forget(e.Node, 1)
		return true, errno(syscall.EEXIST)
	}
	return false, nil
}

// set makes the name lead to node, which is pinned or linked for it already, in the place of what was there.
func (o *overlay) set(dir uint64, n string, x name) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := nameKey{dir, n}
	if o.names[k] == nil {
		o.pinLocked(dir)
	}
	o.names[k] = &x
}

// drop ends the overlay's name for a node; the source's own stays hidden behind it.
func (o *overlay) drop(dir uint64, n string) {
	o.mu.Lock()
	k := nameKey{dir, n}
	x := o.names[k]
	if x == nil {
		o.mu.Unlock()
		return
	}
	node := x.node
	if x.covers && !isLocal(dir) {
		o.names[k] = &name{covers: true}
	} else {
		delete(o.names, k)
		defer o.unpin(dir)
	}
	o.mu.Unlock()
	o.unlinked(node)
}

// unlinked takes one name from a node.
func (o *overlay) unlinked(node uint64) {
	switch {
	case node == 0:
	case isLocal(node):
		o.mu.Lock()
		if l := o.locals[node]; l != nil {
			l.names--
			o.reapLocked(l)
		}
		o.mu.Unlock()
	default:
		o.unpin(node)
	}
}

// make creates a local node with a name, or shows a socket of the source again that the restore has unlinked.
func (o *overlay) make(who wire.FileCaller, dir uint64, n string, nl newLocal) (wire.FileEntry, error) {
	covers, err := o.free(who, dir, n)
	if err != nil {
		return wire.FileEntry{}, err
	}
	if covers && nl.mode&syscall.S_IFMT == syscall.S_IFSOCK {
		e, found, err := o.base(who, dir, n)
		switch {
		case err != nil:
			return e, err
		case found && e.Attr.Mode&syscall.S_IFMT == syscall.S_IFSOCK:
			o.mu.Lock()
			delete(o.names, nameKey{dir, n})
			o.mu.Unlock()
			o.unpin(dir)
			return e, nil
		case found:
			o.f.forget(e.Node, 1)
		}
	}
	nl.named = true
	l, err := o.newLocal(who, nl)
	if err != nil {
		return wire.FileEntry{}, err
	}
	o.set(dir, n, name{node: l.id, covers: covers})
	return o.entry(l.id)
}

// nameless creates a local node without a name.
func (o *overlay) nameless(who wire.FileCaller, nl newLocal) (wire.FileEntry, error) {
	l, err := o.newLocal(who, nl)
	if err != nil {
		return wire.FileEntry{}, err
	}
	return o.entry(l.id)
}

// link gives a node one name more, in the overlay.
func (o *overlay) link(who wire.FileCaller, node, dir uint64, n string) (wire.FileEntry, error) {
	covers, err := o.free(who, dir, n)
	if err != nil {
		return wire.FileEntry{}, err
	}
	if err := o.hold(node); err != nil {
		return wire.FileEntry{}, err
	}
	o.set(dir, n, name{node: node, covers: covers})
	return o.entry(node)
}

// hold is the opposite of unlinked.
func (o *overlay) hold(node uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !isLocal(node) {
		o.pinLocked(node)
		return nil
	}
	l := o.locals[node]
	if l == nil {
		return errno(syscall.ESTALE)
	}
	l.names++
	return nil
}

// at finds what a name leads to, for a change of the name. pin: a node of the source is pinned for the caller.
func (o *overlay) at(who wire.FileCaller, dir uint64, n string, pin bool) (node uint64, kind nameKind, mode uint32, err error) {
	x, kind := o.find(dir, n)
	switch {
	case kind == nameHidden:
		return 0, kind, 0, errno(syscall.ENOENT)
	case kind == nameOwn && isLocal(x.node):
		a, err := o.attr(x.node)
		return x.node, kind, a.Mode, err
	case kind == nameOwn:
		a, err := o.f.remote.GetAttr(o.f.ctx, x.node)
		if err == nil && pin {
			err = o.hold(x.node)
		}
		return x.node, kind, a.Mode, err
	}
	e, found, err := o.base(who, dir, n)
	if err != nil {
		return 0, kind, 0, err
	}
	if !found {
		return 0, kind, 0, errno(syscall.ENOENT)
	}
	if pin {
		err = o.hold(e.Node)
	}
	o.f.forget(e.Node, 1)
	return e.Node, kind, e.Attr.Mode, err
}

// hide takes a name away: the overlay's is dropped, the source's hidden.
func (o *overlay) hide(dir uint64, n string, kind nameKind, node uint64) {
	if kind == nameOwn {
		o.drop(dir, n)
		return
	}
	o.set(dir, n, name{covers: true, was: node})
}

func (o *overlay) unlink(who wire.FileCaller, dir uint64, n string, rmdir bool) error {
	node, kind, mode, err := o.at(who, dir, n, false)
	if err != nil {
		return err
	}
	if isDir := mode&syscall.S_IFMT == syscall.S_IFDIR; isDir != rmdir {
		if isDir {
			return errno(syscall.EISDIR)
		}
		return errno(syscall.ENOTDIR)
	}
	if rmdir {
		if err := o.empty(node); err != nil {
			return err
		}
	}
	o.hide(dir, n, kind, node)
	return nil
}

// rename moves names in the overlay only.
func (o *overlay) rename(who wire.FileCaller, dir uint64, n string, dir2 uint64, n2 string, flags uint32) error {
	const noReplace, exchange = 1, 2
	node, kind, _, err := o.at(who, dir, n, true)
	if err != nil {
		return err
	}
	if isLocal(node) { // the reference that at takes for nodes of the source
		if err := o.hold(node); err != nil {
			return err
		}
	}
	back := func(err error) error { o.unlinked(node); return err }
	node2, kind2, mode2, err := o.at(who, dir2, n2, flags&exchange != 0)
	there := err == nil
	switch {
	case err != nil && errnoOf(err) != syscall.ENOENT:
		return back(err)
	case flags&exchange != 0 && !there:
		return back(err)
	case flags&noReplace != 0 && there:
		return back(errno(syscall.EEXIST))
	case there && node == node2 && flags&exchange == 0: // two names of one file: nothing happens
		return back(nil)
	case there && flags&exchange == 0 && mode2&syscall.S_IFMT == syscall.S_IFDIR:
		if err := o.empty(node2); err != nil {
			return back(err)
		}
	}
	if flags&exchange != 0 && isLocal(node2) {
		if err := o.hold(node2); err != nil {
			return back(err)
		}
	}
	if there {
		o.hide(dir2, n2, kind2, node2)
	}
	o.hide(dir, n, kind, node)
	o.take(dir2, n2, node)
	if flags&exchange != 0 {
		o.take(dir, n, node2)
	}
	return nil
}

// take lets a name that is free lead to a node that is held for it.
func (o *overlay) take(dir uint64, n string, node uint64) {
	x, _ := o.find(dir, n)
	o.set(dir, n, name{node: node, covers: x != nil && x.covers})
}
