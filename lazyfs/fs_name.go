package lazyfs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazymig/lazymig/wire"
)

// Lookup: overlay first, then the source. That there is no such name is kept by the kernel, too.
func (f *fsys) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if f.ov.enter() {
		defer f.ov.leave()
		e, kind, err := f.ov.lookup(h.NodeId, name)
		switch {
		case err != nil:
			return f.status(err)
		case kind == nameHidden:
			return fuse.ENOENT
		case kind == nameOwn:
			fillLocal(out, &e)
			return fuse.OK
		}
	}
	if isLocal(h.NodeId) { // a directory that had no name at the source
		return fuse.ENOENT
	}
	asked := f.now()
	e, err := f.remote.Lookup(f.ctx, caller(h), h.NodeId, name)
	st := f.status(err)
	switch st {
	case fuse.OK:
		f.learn(&e, asked)
		f.fillEntry(out, &e)
	case fuse.ENOENT:
		out.NodeId = 0
		out.SetEntryTimeout(f.valid())
		return fuse.OK
	}
	return st
}

// made answers an operation that makes a name at the source.
func (f *fsys) made(e *wire.FileEntry, err error, out *fuse.EntryOut, asked moment) fuse.Status {
	if err != nil {
		return f.status(err)
	}
	f.learn(e, asked)
	f.fillEntry(out, e)
	return fuse.OK
}

// madeLocal answers one that made it in the overlay.
func (f *fsys) madeLocal(e *wire.FileEntry, err error, out *fuse.EntryOut) fuse.Status {
	if err != nil {
		return f.status(err)
	}
	if isLocal(e.Node) {
		fillLocal(out, e)
	} else {
		f.fillEntry(out, e)
	}
	return fuse.OK
}

func (f *fsys) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if f.ov.enter() {
		defer f.ov.leave()
		e, err := f.ov.make(caller(&in.InHeader), in.NodeId, name, newLocal{mode: in.Mode &^ (in.Umask & 0o777), rdev: in.Rdev})
		return f.madeLocal(&e, err, out)
	}
	if isLocal(in.NodeId) {
		return fuse.ENOENT
	}
	f.clock.begin()
	defer f.clock.end()
	asked := f.now()
	defer f.watch.named(in.NodeId, name)
	e, err := f.remote.Mknod(f.ctx, caller(&in.InHeader), in.NodeId, name, in.Mode, in.Umask, in.Rdev)
	return f.made(&e, err, out, asked)
}

func (f *fsys) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if f.ov.enter() {
		defer f.ov.leave()
		e, err := f.ov.make(caller(&in.InHeader), in.NodeId, name, newLocal{mode: in.Mode&0o7777&^(in.Umask&0o777) | syscall.S_IFDIR})
		return f.madeLocal(&e, err, out)
	}
	if isLocal(in.NodeId) {
		return fuse.ENOENT
	}
	f.clock.begin()
	defer f.clock.end()
	asked := f.now()
	defer f.watch.named(in.NodeId, name)
	e, err := f.remote.Mkdir(f.ctx, caller(&in.InHeader), in.NodeId, name, in.Mode, in.Umask)
	return f.made(&e, err, out, asked)
}

func (f *fsys) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if f.ov.enter() {
		defer f.ov.leave()
		e, err := f.ov.make(caller(h), h.NodeId, name, newLocal{mode: syscall.S_IFLNK | 0o777, target: target})
		return f.madeLocal(&e, err, out)
	}
	if isLocal(h.NodeId) {
		return fuse.ENOENT
	}
	f.clock.begin()
	defer f.clock.end()
	asked := f.now()
	defer f.watch.named(h.NodeId, name)
	e, err := f.remote.Symlink(f.ctx, caller(h), h.NodeId, name, target)
	return f.made(&e, err, out, asked)
}

func (f *fsys) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if f.ov.enter() {
		defer f.ov.leave()
		e, err := f.ov.link(caller(&in.InHeader), in.Oldnodeid, in.NodeId, name)
		if err != nil {
			return f.status(err)
		}
		fillLocal(out, &e)
		return fuse.OK
	}
	switch {
	case isLocal(in.NodeId):
		return fuse.ENOENT
	case isLocal(in.Oldnodeid): // another file system, so to say
		return fuse.EXDEV
	}
	f.clock.begin()
	defer f.clock.end()
	asked := f.now()
	defer f.watch.named(in.NodeId, name)
	defer f.watch.changed(in.Oldnodeid)
	e, err := f.remote.Link(f.ctx, caller(&in.InHeader), in.Oldnodeid, in.NodeId, name)
	return f.made(&e, err, out, asked)
}

func (f *fsys) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.unlink(h, name, false)
}

func (f *fsys) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.unlink(h, name, true)
}

func (f *fsys) unlink(h *fuse.InHeader, name string, dir bool) fuse.Status {
	if f.ov.enter() {
		defer f.ov.leave()
		return f.status(f.ov.unlink(caller(h), h.NodeId, name, dir))
	}
	if isLocal(h.NodeId) {
		return fuse.ENOENT
	}
	f.clock.begin()
	defer f.clock.end()
	defer f.watch.named(h.NodeId, name)
	if dir {
		return f.status(f.remote.Rmdir(f.ctx, caller(h), h.NodeId, name))
	}
	return f.status(f.remote.Unlink(f.ctx, caller(h), h.NodeId, name))
}

func (f *fsys) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, name2 string) fuse.Status {
	if f.ov.enter() {
		defer f.ov.leave()
		return f.status(f.ov.rename(caller(&in.InHeader), in.NodeId, name, in.Newdir, name2, in.Flags))
	}
	if isLocal(in.NodeId) || isLocal(in.Newdir) {
		return fuse.ENOENT
	}
	f.clock.begin()
	defer f.clock.end()
	defer f.watch.named(in.NodeId, name)
	defer f.watch.named(in.Newdir, name2)
	return f.status(f.remote.Rename(f.ctx, caller(&in.InHeader), in.NodeId, name, in.Newdir, name2, in.Flags))
}

func (f *fsys) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if isLocal(h.NodeId) {
		return f.ov.readlink(h.NodeId)
	}
	b, err := f.remote.Readlink(f.ctx, h.NodeId)
	f.wasRead(h.NodeId)
	return b, f.status(err)
}
