package lazyfs

import (
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazymig/lazymig/wire"
)

// Pieces of a directory are fetched larger than the kernel asks (4 KB at a time costs a round trip for 25 names).
const (
	firstPiece = 64 << 10
	morePiece  = 256 << 10
)

// dirHandle is an open directory. Before the grant it is a list made of source and overlay, read at position 0;
// then what names knows, or pieces of the source's, at the source's own positions.
type dirHandle struct {
	node uint64
	h    uint64 // at the source, and the kernel's: what a successor would need is in the kernel's requests

	mu     sync.Mutex
	merged bool
	whole  []wire.FileDirent // all, as the source had it at position 0; nil: it is read piece by piece
	next   int               // in whole
	list   []wire.FileDirent // merged: all; else what was fetched and not yet given
	pos    uint64            // of list[0]
	plus   bool              // list was fetched with entries
	quiet  uint64            // changeClock at the fetch
	asked  moment            // of the fetch
	eof    bool
	many   bool
}

func (f *fsys) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	var h uint64
	if !isLocal(in.NodeId) {
		var ok bool
		if h, ok = f.openAs(&in.InHeader, 0, true); !ok {
			var err error
			if h, err = f.remote.OpenDir(f.ctx, caller(&in.InHeader), in.NodeId); err != nil {
				return f.status(err)
			}
		}
		f.watch.opened(in.NodeId, false)
		if f.alone() && f.seeds.isFrozen() {
			out.OpenFlags = f.listings.opens(in.NodeId)
		}
	}
	f.dirMu.Lock()
	defer f.dirMu.Unlock()
	if isLocal(in.NodeId) {
		f.nextDir++
		h = localBit | f.nextDir
	}
	f.dirs[h] = &dirHandle{node: in.NodeId, h: h}
	out.Fh = h
	return fuse.OK
}

// dir finds a handle, or makes it anew where a daemon before this one has opened it: all that counts is the number.
func (f *fsys) dir(node, fh uint64) *dirHandle {
	f.dirMu.Lock()
	defer f.dirMu.Unlock()
	d := f.dirs[fh]
	if d == nil {
		d = &dirHandle{node: node, h: fh}
		if isLocal(node) { // it lost its names with the grant
			d.merged, d.list = true, dots(node)
		}
		f.dirs[fh] = d
	}
	return d
}

func (f *fsys) ReleaseDir(in *fuse.ReleaseIn) {
	f.dirMu.Lock()
	d := f.dirs[in.Fh]
	delete(f.dirs, in.Fh)
	f.dirMu.Unlock()
	if d != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		f.dropList(d)
	}
	if !isLocal(in.NodeId) {
		f.own.drop(in.Fh)
		f.watch.closed(in.NodeId, false)
		f.remote.Release(in.NodeId, in.Fh)
	}
}

// dropList forgets entries that were fetched for nothing.
func (f *fsys) dropList(d *dirHandle) {
	for _, e := range d.list {
		if e.Entry.Node != 0 {
			f.forget(e.Entry.Node, 1)
		}
	}
	d.list = nil
}

func (f *fsys) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isLocal(in.NodeId) {
		return fuse.OK
	}
	f.useOwn(&in.InHeader, in.Fh, 0, true)
	return f.status(f.remote.Fsync(f.ctx, caller(&in.InHeader), in.NodeId, in.Fh, in.FsyncFlags&1 != 0))
}

func (f *fsys) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, out, false)
}

func (f *fsys) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, out, true)
}

func (f *fsys) readDir(in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	d := f.dir(in.NodeId, in.Fh)
	f.useOwn(&in.InHeader, in.Fh, 0, true)
	if !isLocal(in.NodeId) {
		defer f.wasRead(in.NodeId)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if in.Offset == 0 {
		if st := f.rewind(d, plus); !st.Ok() {
			return st
		}
	}
	if d.merged {
		for i := in.Offset; i < uint64(len(d.list)); i++ {
			e := d.list[i]
			e.Off, e.Entry = i+1, wire.FileEntry{}
			if !f.put(out, &e, plus, false) {
				break
			}
		}
		return fuse.OK
	}
	if d.whole != nil && f.putWhole(out, d, in.Offset, plus) {
		return fuse.OK
	}
	if in.Offset != d.pos || plus && !d.plus && len(d.list) > 0 {
		f.dropList(d)
		d.pos, d.eof = in.Offset, false
	}
	given := 0
	for {
		if len(d.list) == 0 {
			if d.eof || given > 0 && plus { // a piece a request: what was fetched ahead with entries should not get old
				return fuse.OK
			}
			size := uint32(firstPiece)
			if d.many {
				size = morePiece
			}
			d.quiet, d.asked, d.plus, d.many = f.clock.quiet(), f.now(), plus, true
			list, eof, err := f.remote.ReadDir(f.ctx, d.node, d.h, d.pos, size, plus)
			if err != nil {
				if given > 0 {
					return fuse.OK // told by the next request
				}
				return f.status(err)
			}
			d.list, d.eof = list, eof || len(list) == 0
			continue
		}
		e := &d.list[0]
		fresh := plus && f.clock.fresh(d.quiet)
		if !f.put(out, e, plus, fresh) {
			return fuse.OK
		}
		switch {
		case e.Entry.Node == 0:
		case fresh:
			f.learn(&e.Entry, d.asked)
		default:
			f.forget(e.Entry.Node, 1)
		}
		d.pos, d.list = e.Off, d.list[1:]
		given++
	}
}

// putWhole adds names of a directory that is known as a whole, unless there is no such position.
func (f *fsys) putWhole(out *fuse.DirEntryList, d *dirHandle, pos uint64, plus bool) bool {
	i := d.next
	if pos == 0 {
		i = 0
	} else if i == 0 || d.whole[i-1].Off != pos { // the kernel did not take all that it got
		i = 1 + slices.IndexFunc(d.whole, func(e wire.FileDirent) bool { return e.Off == pos })
		if i == 0 {
			d.whole = nil
			return false
		}
	}
	for ; i < len(d.whole); i++ {
		e := &d.whole[i]
		de := fuse.DirEntry{Mode: e.Type, Name: e.Name, Ino: e.Ino, Off: e.Off}
		if !plus {
			if !out.AddDirEntry(de) {
				break
			}
			continue
		}
		ent := out.AddDirLookupEntry(de)
		if ent == nil {
			break
		}
		asked := f.now()
		if x := f.names.take(d.node, e.Name); x.Node != 0 {
			f.learn(&x, asked)
			f.fillEntry(ent, &x)
		}
	}
	d.next = i
	return true
}

// rewind begins anew at position 0, with the overlay as long as there is one.
func (f *fsys) rewind(d *dirHandle, plus bool) fuse.Status {
	f.dropList(d)
	d.pos, d.eof, d.merged, d.whole, d.next = 0, false, false, nil, 0
	if f.ov.enter() {
		defer f.ov.leave()
		list, err := f.ov.list(d.node, d.h)
		if err != nil {
			return f.status(err)
		}
		d.list, d.merged = list, true
	} else if isLocal(d.node) {
		d.merged, d.list = true, dots(d.node)
	} else {
		var told time.Time
		d.whole, told = f.names.list(f.ctx, d.node, plus)
		f.listings.begun(d.node, told)
	}
	return fuse.OK
}

// put adds a name to the reply, with what is known of it if that is fresh.
func (f *fsys) put(out *fuse.DirEntryList, e *wire.FileDirent, plus, fresh bool) bool {
	de := fuse.DirEntry{Mode: e.Type, Name: e.Name, Ino: e.Ino, Off: e.Off}
	if !plus {
		return out.AddDirEntry(de)
	}
	ent := out.AddDirLookupEntry(de)
	if ent == nil {
		return false
	}
	if fresh && e.Entry.Node != 0 {
		f.fillEntry(ent, &e.Entry)
	}
	return true
}
