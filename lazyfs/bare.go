package lazyfs

import "github.com/lazymig/lazymig/wire"

// bareSet holds nodes of the source without extended attributes. The kernel asks for the ACL of each file that
// somebody else than its owner uses, and for the capabilities of each that is run or written; nearly none has any.
// A node leaves the set before an attribute is set, and enters only if nothing was changed since the source looked.
type bareSet struct{ idSet }

// moment is when the source was asked.
type moment struct{ xattrs, attrs uint64 }

func (f *fsys) now() moment { return moment{f.xclock.quiet(), f.attrs.now()} }

// learn takes what a reply says.
func (f *fsys) learn(e *wire.FileEntry, asked moment) {
	if f.alone() {
		f.attrs.learn(e.Node, &e.Attr, asked.attrs, false)
	}
	if e.Attr.Flags&wire.FileBare == 0 {
		return
	}
	f.bare.mu.Lock()
	defer f.bare.mu.Unlock()
	if f.xclock.fresh(asked.xattrs) { // under mu: drop comes after begin
		f.bare.addLocked(e.Node)
	}
}
