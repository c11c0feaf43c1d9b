package lazyfs

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazymig/lazymig/wire"
)

// Opening for reading takes no round trip. By the time a program's open comes here its permission, the path, O_NOFOLLOW and O_NOATIME have been decided by the
// kernel, and the source would open the very file that the node is, whatever names it has lost meanwhile: so the kernel is answered at once, under a handle that is
// made of the request's number, and then the source is told: the program runs while that is sent. What uses the handle comes behind that on the lane. Only files for which the source says so (wire.FileOpens)
// are opened like this: a window into its kernel is refused there. An open for writing waits: the source may be running the file (ETXTBSY).
//
// FUSE's own way, where the kernel sends no OPEN at all (FUSE_NO_OPEN_SUPPORT), would be for all files of the mount and their writers, and nobody would know
// what the tree has open.

// openAs answers an open for reading without the source, if that can be.
func (f *fsys) openAs(h *fuse.InHeader, flags uint32, dir bool) (handle uint64, ok bool) {
	own := wire.FileOwnHandle | number(h)
	if f.repeats.Load() > 0 { // a daemon before this one may have done so: it is this request's handle, and there shall be only one
		f.remote.Release(h.NodeId, own)
		return 0, false
	}
	if !f.alone() || flags&(syscall.O_ACCMODE|syscall.O_TRUNC) != syscall.O_RDONLY || !f.openable.has(h.NodeId) {
		return 0, false
	}
	if f.succeeds {
		f.own.add(own)
	}
	f.remote.OpenAs(caller(h), h.NodeId, own, flags, dir)
	return own, true
}

// useOwn is before a handle is used. One that a daemon before this one has answered to the kernel may have died on its way to the source: it is opened
// there unless it is.
func (f *fsys) useOwn(h *fuse.InHeader, handle uint64, flags uint32, dir bool) {
	if handle&wire.FileOwnHandle != 0 && !isLocal(handle) && f.succeeds && f.own.add(handle) {
		f.remote.OpenAs(caller(h), h.NodeId, handle, flags, dir)
	}
}

// idSet is a set of numbers.
type idSet struct {
	mu  sync.Mutex
	ids map[uint64]struct{}
}

const maxIDs = 1 << 20 // of a set that may forget

// add says whether id was not there.
func (s *idSet) add(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addLocked(id)
}

func (s *idSet) addLocked(id uint64) bool {
	if _, ok := s.ids[id]; ok {
		return false
	}
	if s.ids == nil || len(s.ids) >= maxIDs {
		s.ids = map[uint64]struct{}{}
	}
	s.ids[id] = struct{}{}
	return true
}

func (s *idSet) drop(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

func (s *idSet) has(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.ids[id]
	return ok
}
