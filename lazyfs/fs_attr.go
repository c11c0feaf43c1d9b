package lazyfs

import (
	"bytes"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazymig/lazymig/wire"
)

func (f *fsys) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isLocal(in.NodeId) {
		a, err := f.ov.attr(in.NodeId)
		if err != nil {
			return f.status(err)
		}
		fillAttr(&out.Attr, &a)
		return fuse.OK
	}
	var a wire.FileAttr
	var err error
	if f.alone() {
		a, err = f.attrs.ask(f.ctx, f.remote, in.NodeId, false)
	} else {
		a, err = f.remote.GetAttr(f.ctx, in.NodeId)
	}
	if err == nil {
		f.knows(in.NodeId, &a)
	}
	return f.attr(&a, err, out)
}

func (f *fsys) attr(a *wire.FileAttr, err error, out *fuse.AttrOut) fuse.Status {
	if err != nil {
		return f.status(err)
	}
	out.SetTimeout(f.valid())
	fillAttr(&out.Attr, a)
	return fuse.OK
}

func (f *fsys) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	s := wire.FileSetAttr{
		Valid: in.Valid & (wire.FileSetMode | wire.FileSetUID | wire.FileSetGID | wire.FileSetSize | wire.FileSetAtime | wire.FileSetMtime |
			wire.FileSetHandle | wire.FileSetAtimeNow | wire.FileSetMtimeNow | wire.FileSetKillPriv),
		Handle: in.Fh, Size: in.Size, Mode: in.Mode, UID: in.Uid, GID: in.Gid,
		Atime: wire.FileTime{Sec: int64(in.Atime), Nsec: in.Atimensec},
		Mtime: wire.FileTime{Sec: int64(in.Mtime), Nsec: in.Mtimensec},
	}
	if isLocal(in.NodeId) {
		a, err := f.ov.setAttr(number(&in.InHeader), in.NodeId, &s)
		if err != nil {
			return f.status(err)
		}
		fillAttr(&out.Attr, &a)
		return fuse.OK
	}
	if f.ov.enter() {
		defer f.ov.leave()
		a, err := f.remote.GetAttr(f.ctx, in.NodeId)
		if err == nil && changesAttr(&s, &a) {
			return fuse.EROFS
		}
		return f.attr(&a, err, out)
	}
	if s.Valid&wire.FileSetSize != 0 {
		defer f.copies.cutting(in.NodeId)()
	}
	f.clock.begin()
	defer f.clock.end()
	a, err := f.remote.SetAttr(f.ctx, caller(&in.InHeader), in.NodeId, s)
	if s.Valid&wire.FileSetSize != 0 {
		f.watch.wrote(in.NodeId, s.Size, noEnd)
	}
	f.watch.changed(in.NodeId)
	return f.attr(&a, err, out)
}

// changesAttr says whether s is more than what a is already. A truncation is a change even to the same size.
func changesAttr(s *wire.FileSetAttr, a *wire.FileAttr) bool {
	has := func(bit uint32) bool { return s.Valid&bit != 0 }
	return has(wire.FileSetSize) || has(wire.FileSetAtimeNow|wire.FileSetMtimeNow) ||
		has(wire.FileSetMode) && s.Mode&0o7777 != a.Mode&0o7777 ||
		has(wire.FileSetUID) && s.UID != a.UID || has(wire.FileSetGID) && s.GID != a.GID ||
		has(wire.FileSetAtime) && s.Atime != a.Atime || has(wire.FileSetMtime) && s.Mtime != a.Mtime
}

func (f *fsys) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	node := h.NodeId
	if isLocal(node) {
		node = wire.FileRootNode
	}
	s, err := f.remote.Statfs(f.ctx, node)
	if err != nil {
		return f.status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree,
		Bsize: s.Bsize, NameLen: s.Namelen, Frsize: s.Frsize,
	}
	return fuse.OK
}

func (f *fsys) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if isLocal(h.NodeId) {
		return f.ov.getXattr(h.NodeId, name, dest)
	}
	if f.bare.has(h.NodeId) && (name == "security.capability" || strings.HasPrefix(name, "system.posix_acl_")) {
		return 0, fuse.ENODATA
	}
	n, v, err := f.remote.GetXattr(f.ctx, h.NodeId, name, uint32(len(dest)))
	return f.xattr(n, v, err, dest)
}

func (f *fsys) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if isLocal(h.NodeId) {
		return f.ov.listXattr(h.NodeId, dest)
	}
	if h.Uid != 0 {
		return f.listUntrusted(h.NodeId, dest)
	}
	n, v, err := f.remote.ListXattr(f.ctx, h.NodeId, uint32(len(dest)))
	return f.xattr(n, v, err, dest)
}

// listUntrusted lists names but for those that file systems show only to who has CAP_SYS_ADMIN (xattr(7)): here that is root.
func (f *fsys) listUntrusted(node uint64, dest []byte) (uint32, fuse.Status) {
	_, all, err := f.remote.ListXattr(f.ctx, node, wire.MaxFileXattr)
	if err != nil {
		return 0, f.status(err)
	}
	var v []byte
	for name := range bytes.SplitAfterSeq(all, []byte{0}) {
		if !bytes.HasPrefix(name, []byte("trusted.")) {
			v = append(v, name...)
		}
	}
	if len(dest) > 0 && len(v) > len(dest) {
		return uint32(len(v)), fuse.ERANGE
	}
	return f.xattr(uint32(len(v)), v, nil, dest)
}

func (f *fsys) xattr(n uint32, v []byte, err error, dest []byte) (uint32, fuse.Status) {
	switch {
	case err != nil:
		return 0, f.status(err)
	case len(dest) == 0:
		return n, fuse.OK
	case len(v) > len(dest):
		return 0, fuse.EIO
	}
	return uint32(copy(dest, v)), fuse.OK
}

func (f *fsys) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, v []byte) fuse.Status {
	if isLocal(in.NodeId) {
		return f.ov.setXattr(number(&in.InHeader), in.NodeId, name, v, in.Flags)
	}
	f.clock.begin()
	defer f.clock.end()
	f.xclock.begin()
	defer f.xclock.end()
	f.bare.drop(in.NodeId)
	defer f.watch.changed(in.NodeId)
	kill := in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	return f.status(f.remote.SetXattr(f.ctx, caller(&in.InHeader), in.NodeId, name, v, in.Flags, kill))
}

func (f *fsys) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if isLocal(h.NodeId) {
		return f.ov.removeXattr(number(h), h.NodeId, name)
	}
	f.clock.begin()
	defer f.clock.end()
	defer f.watch.changed(h.NodeId)
	return f.status(f.remote.RemoveXattr(f.ctx, caller(h), h.NodeId, name))
}

// Ioctl: no request to a file means anything elsewhere. isatty asks often.
func (f *fsys) Ioctl(_ <-chan struct{}, _ *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, _ []byte) fuse.Status {
	return fuse.Status(25) // ENOTTY
}
