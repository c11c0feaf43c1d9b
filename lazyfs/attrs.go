package lazyfs

import (
	"context"
	"sync"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// attrs answers the kernel when it asks again for attributes that it has had: it no longer trusts them when it has read the file, because of the time of access
// (fuse_invalidate_atime). Whether that time moves is known to the source (wire.FileStill). Where it does, the attributes are asked for again as soon as the file has
// been read, so that they are here when a program wants them.
type attrs struct {
	mu       sync.Mutex
	nodes    map[uint64]*knownAttr
	clock    uint64            // counts changes that have begun or ended
	changing map[uint64]int    // nodes → changes under way
	leaving  int               // changes under way of nodes that are not told
	changed  map[uint64]uint64 // nodes → clock at their last change, if it is after all
	all      uint64            // what was told before this is void, whatever it is of
}

type knownAttr struct {
	attr  wire.FileAttr
	since time.Time
	fresh bool // was asked for because the file had been read
}

const (
	attrLife   = time.Hour // as the kernel's
	maxAttrs   = 1 << 16
	maxChanged = 1 << 12
)

func newAttrs() *attrs {
	return &attrs{nodes: map[uint64]*knownAttr{}, changing: map[uint64]int{}, changed: map[uint64]uint64{}}
}

func (a *attrs) begins(c *change) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clock++
	for _, node := range append(c.dirs(), c.nodes...) {
		a.changing[node]++
		delete(a.nodes, node)
	}
	if c.leaves {
		a.leaving++
		clear(a.nodes)
	}
}

func (a *attrs) ended(c *change) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clock++
	for _, node := range append(c.dirs(), c.nodes...) {
		if a.changing[node]--; a.changing[node] == 0 {
			delete(a.changing, node)
		}
		a.changed[node] = a.clock
	}
	if c.leaves {
		a.leaving--
	}
	if c.leaves || len(a.changed) > maxChanged {
		a.all = a.clock
		clear(a.changed)
	}
}

// now is before the source is asked.
func (a *attrs) now() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.clock
}

// learn takes what the source says of a node, asked then.
func (a *attrs) learn(node uint64, attr *wire.FileAttr, asked uint64, fresh bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leaving > 0 || a.changing[node] > 0 || a.changed[node] > asked || a.all > asked {
		return
	}
	if len(a.nodes) >= maxAttrs {
		clear(a.nodes)
	}
	a.nodes[node] = &knownAttr{*attr, time.Now(), fresh}
}

// get tells what the source would say.
func (a *attrs) get(node uint64) (wire.FileAttr, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if k := a.nodes[node]; k != nil && time.Since(k.since) < attrLife {
		return k.attr, true
	}
	return wire.FileAttr{}, false
}

// read is when the tree has read a file or directory. ask: what is known of it is void by that, and worth asking for again.
func (a *attrs) read(node uint64) (ask bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.nodes[node]
	if k == nil || k.attr.Flags&wire.FileStill != 0 {
		return false
	}
	delete(a.nodes, node)
	return !k.fresh // else its time moves with each read
}

func (a *attrs) forgot(node uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.nodes, node)
}

// ask tells the attributes of a node, from the source unless they are known.
func (a *attrs) ask(ctx context.Context, r Remote, node uint64, fresh bool) (wire.FileAttr, error) {
	if attr, ok := a.get(node); ok {
		return attr, nil
	}
	asked := a.now()
	attr, err := r.GetAttr(ctx, node)
	if err == nil {
		a.learn(node, &attr, asked, fresh)
	}
	return attr, err
}

// wasRead is attrs.read, and asks.
func (f *fsys) wasRead(node uint64) {
	if !f.attrs.read(node) || f.ctx.Err() != nil {
		return
	}
	f.asks.Go(func() { _, _ = f.attrs.ask(f.ctx, f.remote, node, true) }) // an error is told to who asks again
}
