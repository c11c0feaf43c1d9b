package lazyfs

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// dirNames knows whole directories of the source, so that a name that is there, one that is not, and a list take no round trip each. A directory is fetched
// together with some below it (MsgFileTree) when names in it are asked for again and again, or when it is listed; how much, depends on what a round trip
// costs here.
//
// Each name that was looked up by that is a lookup that the source counts. It is given to the kernel once, and is the kernel's from then on; the
// next time the source is asked. So the kernel never counts more than the source, whenever this daemon dies.
//
// Who changes names and attributes is the tree, through here. A change makes what is known of the name, the node and the directory void before it begins,
// and until it has ended nothing is known of them; of what a fetch brings, all is void that was changed while it was under way. Attributes of files with
// several names are not kept: a change by another name could not be told.
type dirNames struct {
	Remote
	ctx    context.Context
	on     func() bool // nobody else changes files
	forget func(node, n uint64)
	wg     sync.WaitGroup

	mu       sync.Mutex
	dirs     map[uint64]*knownDir
	owner    map[uint64]nameKey // node of a name that is here to be given → the name
	changing map[any]int        // nameKey or node → changes under way
	fetches  map[*nameFetch]struct{}
	count    int           // names in dirs
	trip     time.Duration // what a lookup takes, about
}

// knownDir is what is known of a directory, or how often it was asked for.
type knownDir struct {
	misses  int
	names   map[string]*knownName // nil: none are known
	whole   bool                  // there are no other names
	tooBig  bool                  // it can't be fetched as a whole
	unsure  map[string]struct{}   // names that have changed
	list    []wire.FileDirent     // in the order of their positions, if no name has changed; without entries
	unasked int                   // names that were not looked up
	born    time.Time             // when they were fetched
	fetch   *nameFetch            // under way
}

// knownName is a name that is there.
type knownName struct {
	entry wire.FileEntry // node 0: given away, or not looked up
}

// nameFetch is a MsgFileTree under way.
type nameFetch struct {
	done    chan struct{}
	touched map[any]struct{} // what was changed since it began
}

const (
	nameLife  = 5 * time.Second        // what is known is for a walk; if somebody at the source does change something, it is seen soon
	maxNames  = 50_000                 // that are kept; then all is forgotten
	lookCost  = 10 * time.Microsecond  // a name may be looked up ahead for this part of a round trip
	firstTrip = 500 * time.Microsecond // until one has been measured
)

func newNames(ctx context.Context, r Remote, forget func(node, n uint64)) *dirNames {
	return &dirNames{
		Remote: r, ctx: ctx, forget: forget, dirs: map[uint64]*knownDir{}, owner: map[uint64]nameKey{}, changing: map[any]int{},
		fetches: map[*nameFetch]struct{}{}, trip: firstTrip,
	}
}

// worth is how many names may be looked up ahead; with mu.
func (x *dirNames) worth(misses int) int {
	return int(min(time.Duration(misses)*x.trip/lookCost, wire.MaxFileTree))
}

// Lookup answers what is known, and asks the source for all else.
func (x *dirNames) Lookup(ctx context.Context, who wire.FileCaller, dir uint64, name string) (wire.FileEntry, error) {
	if !x.on() {
		return x.Remote.Lookup(ctx, who, dir, name)
	}
	for range 2 {
		x.mu.Lock()
		e, known := x.takeLocked(dir, name)
		var f *nameFetch
		if !known {
			f = x.missLocked(dir, name)
		}
		x.mu.Unlock()
		switch {
		case known && e.Node == 0:
			return e, &wire.Error{Errno: syscall.ENOENT, Text: "no such name"}
		case known:
			return e, nil
		}
		if f == nil {
			break
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return e, ctx.Err()
		}
	}
	began := time.Now()
	e, err := x.Remote.Lookup(ctx, who, dir, name)
	x.mu.Lock()
	x.trip += (min(time.Since(began), time.Second) - x.trip) / 8
	x.mu.Unlock()
	return e, err
}

// takeLocked gives what is known of a name: its entry, which is the caller's, or node 0: there is no such name.
func (x *dirNames) takeLocked(dir uint64, name string) (e wire.FileEntry, known bool) {
	d := x.dirs[dir]
	if d == nil || !x.youngLocked(d) || len(name) > wire.MaxFileName || x.changing[nameKey{dir, name}] > 0 {
		return e, false
	}
	if n := d.names[name]; n != nil {
		e, n.entry = n.entry, wire.FileEntry{}
		delete(x.owner, e.Node)
		return e, e.Node != 0
	}
	_, unsure := d.unsure[name]
	return e, d.whole && !unsure
}

// take is takeLocked for who lists a directory: node 0 means that nothing is known.
func (x *dirNames) take(dir uint64, name string) wire.FileEntry {
	x.mu.Lock()
	defer x.mu.Unlock()
	e, _ := x.takeLocked(dir, name)
	return e
}

// missLocked counts what was not known, and begins a fetch if that is worth it, or joins one.
func (x *dirNames) missLocked(dir uint64, name string) *nameFetch {
	d := x.dirLocked(dir)
	d.misses++
	x.youngLocked(d)
	switch {
	case d.fetch != nil:
		return d.fetch
	case d.tooBig || d.misses < 2:
	case d.names == nil:
		return x.fetchLocked(dir, d, x.worth(d.misses), x.worth(d.misses))
	case d.names[name] != nil && x.worth(d.misses) >= len(d.names): // the others that are there, too
		return x.fetchLocked(dir, d, wire.MaxFileTree, 0)
	}
	return nil
}

func (x *dirNames) dirLocked(dir uint64) *knownDir {
	d := x.dirs[dir]
	if d == nil {
		d = &knownDir{}
		x.dirs[dir] = d
	}
	return d
}

// list gives a whole directory, without entries, and when the source was asked for it; nil: it is not known, or is changing now. plus: names in it are going to be
// asked for.
func (x *dirNames) list(ctx context.Context, dir uint64, plus bool) (list []wire.FileDirent, told time.Time) {
	now := time.Now()
	if !x.on() {
		return nil, now
	}
	for range 2 {
		x.mu.Lock()
		d := x.dirLocked(dir)
		if x.youngLocked(d) && d.list != nil && (!plus || d.unasked <= len(d.list)/4 || len(d.list) > wire.MaxFileTree) {
			defer x.mu.Unlock()
			return d.list, d.born
		}
		if d.tooBig {
			x.mu.Unlock()
			return nil, now
		}
		f := d.fetch
		if f == nil {
			here, below := 0, 0
			if plus {
				here, below = wire.MaxFileTree, x.worth(1)
			}
			f = x.fetchLocked(dir, d, here, below)
		}
		x.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, now
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if d := x.dirs[dir]; d != nil && d.list != nil {
		return d.list, d.born
	}
	return nil, now
}

// fetchLocked begins a fetch of a directory.
func (x *dirNames) fetchLocked(dir uint64, d *knownDir, here, below int) *nameFetch {
	f := &nameFetch{done: make(chan struct{}), touched: map[any]struct{}{}}
	for k := range x.changing {
		f.touched[k] = struct{}{}
	}
	x.fetches[f], d.fetch = struct{}{}, f
	x.wg.Go(func() {
		list, err := x.Tree(x.ctx, dir, here, below)
		x.mu.Lock()
		defer x.mu.Unlock()
		defer close(f.done)
		delete(x.fetches, f)
		d.fetch = nil
		if err != nil {
			d.tooBig = true // it is asked for name by name; an error is told there
			return
		}
		if x.count > maxNames {
			x.dropAllLocked()
		}
		for i := range list {
			x.learnLocked(f, &list[i], list[i].Node == dir)
		}
		d.misses = 0
	})
	return f
}

// learnLocked takes what a fetch has brought of a directory. asked: it is the one that was to be fetched.
func (x *dirNames) learnLocked(f *nameFetch, t *wire.FileTree, asked bool) {
	d := x.dirLocked(t.Node)
	if !asked && d.names != nil { // known, and perhaps better
		for i := range t.Names {
			if e := &t.Names[i].Entry; e.Node != 0 {
				x.forget(e.Node, 1)
			}
		}
		return
	}
	x.emptyLocked(d)
	d.names, d.whole, d.unsure, d.list, d.unasked = map[string]*knownName{}, t.Whole, nil, t.Names, 0
	d.born = time.Now()
	d.tooBig = d.tooBig || asked && !t.Whole
	for k := range f.touched {
		if k, ok := k.(nameKey); ok && k.dir == t.Node {
			x.unsureLocked(d, k.name)
		}
	}
	for i := range t.Names {
		n := &t.Names[i]
		e := n.Entry
		n.Entry = wire.FileEntry{}
		_, unsure := d.unsure[n.Name]
		switch {
		case n.Name == "." || n.Name == "..":
			continue
		case unsure:
		case e.Node == 0:
			d.names[n.Name] = &knownName{}
			d.unasked++
			continue
		case !x.freshLocked(f, &e):
			d.names[n.Name] = &knownName{}
		default:
			d.names[n.Name] = &knownName{entry: e}
			x.owner[e.Node] = nameKey{t.Node, n.Name}
			continue
		}
		if e.Node != 0 {
			x.forget(e.Node, 1)
		}
	}
	x.count += len(d.names)
	if !t.Whole {
		d.list = nil
	}
}

// freshLocked says that an entry that a fetch brings is as it would be told now, and will be known to be void when it is not.
func (x *dirNames) freshLocked(f *nameFetch, e *wire.FileEntry) bool {
	_, touched := f.touched[e.Node]
	if touched || e.Attr.Mode&syscall.S_IFMT != syscall.S_IFDIR && e.Attr.Nlink > 1 {
		return false
	}
	_, other := x.owner[e.Node]
	return !other
}

// youngLocked says that names of a directory are known; those that were fetched long ago are forgotten.
func (x *dirNames) youngLocked(d *knownDir) bool {
	if d.names != nil && time.Since(d.born) > nameLife {
		x.emptyLocked(d)
		d.misses = 1 // the next time is worth another fetch
	}
	return d.names != nil
}

func (x *dirNames) unsureLocked(d *knownDir, name string) {
	if d.unsure == nil {
		d.unsure = map[string]struct{}{}
	}
	d.unsure[name] = struct{}{}
	d.list = nil
}

// emptyLocked gives back what is known of a directory.
func (x *dirNames) emptyLocked(d *knownDir) {
	x.count -= len(d.names)
	for _, n := range d.names {
		x.giveBackLocked(n)
	}
	d.names, d.list = nil, nil
}

func (x *dirNames) giveBackLocked(n *knownName) {
	if e := n.entry; e.Node != 0 {
		n.entry = wire.FileEntry{}
		delete(x.owner, e.Node)
		x.forget(e.Node, 1)
	}
}

// dropAll forgets all that is known.
func (x *dirNames) dropAll() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.dropAllLocked()
}

func (x *dirNames) dropAllLocked() {
	for node, d := range x.dirs {
		x.emptyLocked(d)
		if d.fetch == nil {
			delete(x.dirs, node)
		}
	}
	x.count = 0
}

// forgot is when the kernel no longer knows a node: neither will it ask for names in it.
func (x *dirNames) forgot(node uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d := x.dirs[node]; d != nil && d.fetch == nil {
		x.emptyLocked(d)
		delete(x.dirs, node)
	}
}
