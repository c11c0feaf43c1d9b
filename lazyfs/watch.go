package lazyfs

import "sync"

// Watcher is told what the tree does to the source's files. Of a change it is told after the source has answered, also if that was an
// error (part of it may be done), and before the tree is: who has been told nothing since before a read has read what the tree
// would read. Calls come from many goroutines and must not wait for anything.
type Watcher interface {
	Opened(node uint64, write bool)     // one open file or directory more
	Closed(node uint64, write bool)     // one less
	Wrote(node uint64, off, end uint64) // contents in this range, or the size, are others
	Changed(node uint64)                // attributes, or the number of its names
	Named(dir uint64, name string)      // the name has come, gone, or leads elsewhere
	Forgot(node uint64)                 // the kernel has forgotten some lookups of it
}

// watching knows what is open, so that a watcher may come at any time.
type watching struct {
	mu    sync.Mutex // held while the watcher is told of what is opened and closed, so that it hears of it in order
	opens map[uint64]*opens
	w     Watcher
}

type opens struct{ all, write int }

// watch makes w the watcher, which hears first of all that is open. Nil: there is none.
func (x *watching) watch(w Watcher) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.w = w
	if w == nil {
		return
	}
	for node, o := range x.opens {
		for i := range o.all {
			w.Opened(node, i < o.write)
		}
	}
}

func (x *watching) opened(node uint64, write bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.opens[node]
	if o == nil {
		if x.opens == nil {
			x.opens = map[uint64]*opens{}
		}
		o = &opens{}
		x.opens[node] = o
	}
	o.all++
	if write {
		o.write++
	}
	if x.w != nil {
		x.w.Opened(node, write)
	}
}

func (x *watching) closed(node uint64, write bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.opens[node]
	if o == nil {
		return
	}
	o.all--
	if write {
		o.write--
	}
	if o.all <= 0 {
		delete(x.opens, node)
	}
	if x.w != nil {
		x.w.Closed(node, write)
	}
}

// tell runs fn with the watcher, if there is one.
func (x *watching) tell(fn func(Watcher)) {
	x.mu.Lock()
	w := x.w
	x.mu.Unlock()
	if w != nil {
		fn(w)
	}
}

func (x *watching) wrote(node, off, end uint64) { x.tell(func(w Watcher) { w.Wrote(node, off, end) }) }
func (x *watching) changed(node uint64)         { x.tell(func(w Watcher) { w.Changed(node) }) }
func (x *watching) named(dir uint64, n string)  { x.tell(func(w Watcher) { w.Named(dir, n) }) }
func (x *watching) forgot(node uint64)          { x.tell(func(w Watcher) { w.Forgot(node) }) }

// Watch tells w what the tree does from now on, and at once what it has open. If w is a Copier files are read from its copies. Nil ends that.
func (d *Daemon) Watch(w Watcher) {
	d.fs.watch.watch(w)
	d.fs.copies.use(w)
}

// NameLocals gives the files that exist on the target only and are in use (the restore made them for unlinked ones) a name in dir, which
// must be on StoreDir's file system, with the attributes that the tree sees; inode → name. What has a name there already keeps it.
func (d *Daemon) NameLocals(dir string) (map[uint64]string, error) { return d.fs.ov.nameAll(dir) }
