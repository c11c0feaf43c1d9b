package lazyfs

import "github.com/lazymig/lazymig/wire"

// bareSet holds nodes of the source without extended attributes. The kernel asks for the ACL of each file that
// somebody else than its owner uses, and for the capabilities of each that is run or written; nearly none has any.
// A node leaves the set before an attribute is set, and enters only if nothing was changed since the source looked.
type bareSet struct{ idSet }

// learn takes what a reply says, fetched when f.clock stood at quiet.
func (f *fsys) learn(e *wire.FileEntry, quiet uint64) {
	if e.Attr.Flags&wire.FileBare == 0 {
		return
	}
	f.bare.mu.Lock()
	defer f.bare.mu.Unlock()
	if f.xclock.fresh(quiet) { // under mu: drop comes after begin
		f.bare.addLocked(e.Node)
	}
}
