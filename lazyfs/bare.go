package lazyfs

import (
	"sync"

	"github.com/lazymig/lazymig/wire"
)

// bareSet holds nodes of the source without extended attributes. The kernel asks for the ACL of each file that
// somebody else than its owner uses, and for the capabilities of each that is run or written; nearly none has any.
// A node leaves the set before an attribute is set, and enters only if nothing was changed since the source looked.
type bareSet struct {
	mu    sync.Mutex
	nodes map[uint64]struct{}
}

const maxBare = 1 << 20

// learn takes what a reply says, fetched when f.clock stood at quiet.
func (f *fsys) learn(e *wire.FileEntry, quiet uint64) {
	if e.Attr.Flags&wire.FileBare == 0 {
		return
	}
	b := &f.bare
	b.mu.Lock()
	defer b.mu.Unlock()
	if !f.xclock.fresh(quiet) { // under mu: drop comes after begin
		return
	}
	if b.nodes == nil || len(b.nodes) >= maxBare {
		b.nodes = map[uint64]struct{}{}
	}
	b.nodes[e.Node] = struct{}{}
}

func (b *bareSet) drop(node uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.nodes, node)
}

// has says that node has no extended attribute.
func (b *bareSet) has(node uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.nodes[node]
	return ok
}
