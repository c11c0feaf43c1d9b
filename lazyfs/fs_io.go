package lazyfs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// Open: the kernel keeps the pages of regular files from one open to the next.
func (f *fsys) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if isLocal(in.NodeId) {
		h, err := f.ov.open(number(&in.InHeader), in.NodeId)
		out.Fh, out.OpenFlags = h, fuse.FOPEN_KEEP_CACHE
		return f.status(err)
	}
	f.opens(in.NodeId)
	h, ok := f.openAs(&in.InHeader, in.Flags, false)
	var err error
	if !ok {
		h, err = f.remote.Open(f.ctx, caller(&in.InHeader), in.NodeId, in.Flags)
	}
	out.Fh, out.OpenFlags = h, f.openFlags(in.Flags)
	if err == nil {
		f.opened(in.NodeId, h, in.Flags)
	}
	return f.status(err)
}

// openFlags: no FLUSH is sent for a handle through which no write can be streamed. ENOSYS to one that is sent would end it for all (fs/fuse/file.c, fuse_flush).
func (f *fsys) openFlags(flags uint32) uint32 {
	if f.streams && !writes(flags) {
		return fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	}
	return fuse.FOPEN_KEEP_CACHE
}

// opened is one open file more.
func (f *fsys) opened(node, h uint64, flags uint32) {
	f.watch.opened(node, writes(flags))
	f.stream.errs.opened(node, h)
	if writes(flags) {
		f.stream.learnRoom(node)
	}
}

// writes says whether open flags allow writing.
func writes(flags uint32) bool { return flags&syscall.O_ACCMODE != syscall.O_RDONLY }

// noEnd is the end of a range that goes up to the end of the file.
const noEnd = 1<<63 - 1

func (f *fsys) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	out.OpenFlags = f.openFlags(in.Flags)
	if f.ov.enter() {
		defer f.ov.leave()
		e, err := f.ov.make(caller(&in.InHeader), in.NodeId, name, newLocal{mode: in.Mode&0o7777&^(in.Umask&0o777) | syscall.S_IFREG})
		if err != nil {
			return f.status(err)
		}
		fillLocal(&out.EntryOut, &e)
		out.Fh, err = f.ov.open(number(&in.InHeader), e.Node)
		return f.status(err)
	}
	if isLocal(in.NodeId) {
		return fuse.ENOENT
	}
	f.clock.begin()
	defer f.clock.end()
	asked := f.now()
	h, e, err := f.remote.Create(f.ctx, caller(&in.InHeader), in.NodeId, name, in.Flags, in.Mode, in.Umask)
	out.Fh = h
	f.watch.named(in.NodeId, name)
	if err == nil {
		f.watch.wrote(e.Node, 0, noEnd) // it may have been there, and was truncated
		f.opened(e.Node, h, in.Flags)
	}
	return f.made(&e, err, &out.EntryOut, asked)
}

// Tmpfile: a file without a name.
func (f *fsys) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	out.OpenFlags = f.openFlags(in.Flags)
	if f.ov.enter() {
		defer f.ov.leave()
		e, err := f.ov.nameless(caller(&in.InHeader), newLocal{mode: in.Mode&0o7777&^(in.Umask&0o777) | syscall.S_IFREG})
		if err != nil {
			return f.status(err)
		}
		fillLocal(&out.EntryOut, &e)
		out.Fh, err = f.ov.open(number(&in.InHeader), e.Node)
		return f.status(err)
	}
	if isLocal(in.NodeId) {
		return fuse.ENOENT
	}
	asked := f.now()
	h, e, err := f.remote.Tmpfile(f.ctx, caller(&in.InHeader), in.NodeId, in.Flags, in.Mode, in.Umask)
	out.Fh = h
	if err == nil {
		f.opened(e.Node, h, in.Flags)
	}
	return f.made(&e, err, &out.EntryOut, asked)
}

// inPlace is a result of Read that already lies in the reply.
type inPlace struct{ b []byte }

func (r inPlace) Bytes([]byte) ([]byte, fuse.Status) { return r.b, fuse.OK }
func (r inPlace) Size() int                          { return len(r.b) }
func (r inPlace) Done()                              {}
func (r inPlace) Readv([][]byte) (int, fuse.Status)  { return len(r.b), fuse.OK }

func (f *fsys) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	buf = buf[:in.Size]
	if isLocal(in.NodeId) {
		n, err := f.ov.read(in.NodeId, buf, in.Offset)
		return inPlace{buf[:n]}, f.status(err)
	}
	if f.alone() && !f.stream.pending(in.NodeId) {
		if n, ok := f.copies.read(in.NodeId, buf, in.Offset); ok {
			return inPlace{buf[:n]}, fuse.OK
		}
	}
	f.useOwn(&in.InHeader, in.Fh, in.Flags, false)
	n, err := f.remote.Read(f.ctx, in.NodeId, in.Fh, in.Offset, buf)
	f.wasRead(in.NodeId)
	return inPlace{buf[:n]}, f.status(err)
}

func (f *fsys) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if isLocal(in.NodeId) {
		n, err := f.ov.write(number(&in.InHeader), in.NodeId, data, in.Offset, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0)
		return uint32(n), f.status(err)
	}
	var flags uint32
	if in.Flags&syscall.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0 { // pages written back have a place
		flags |= wire.FileWriteAppend
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		flags |= wire.FileWriteKillPriv
	}
	end := in.Offset + uint64(len(data))
	if flags&wire.FileWriteAppend != 0 {
		end = noEnd
	}
	if f.streamed(in, flags, data) {
		f.watch.wrote(in.NodeId, in.Offset, end) // and once more when it is done
		return uint32(len(data)), fuse.OK
	}
	f.clock.begin()
	defer f.clock.end()
	n, err := f.remote.Write(f.ctx, caller(&in.InHeader), in.NodeId, in.Fh, in.Offset, flags, data)
	f.watch.wrote(in.NodeId, in.Offset, end)
	return uint32(n), f.status(err)
}

// streamed takes a write that need not wait for the source.
func (f *fsys) streamed(in *fuse.WriteIn, flags uint32, data []byte) bool {
	if f.stream.has(number(&in.InHeader)) { // by a daemon before this one
		return true
	}
	return f.alone() && in.WriteFlags&fuse.WRITE_CACHE == 0 && in.Flags&(syscall.O_SYNC|syscall.O_DSYNC) == 0 &&
		f.stream.take(caller(&in.InHeader), in.NodeId, in.Fh, in.Offset, flags, data)
}

func (f *fsys) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if isLocal(in.NodeId) {
		f.ov.release(number(&in.InHeader), in.NodeId)
		return
	}
	if f.stream.done(f.ctx, in.NodeId) != nil {
		return // at the end
	}
	f.own.drop(in.Fh)
	f.watch.closed(in.NodeId, writes(in.Flags))
	f.remote.Release(in.NodeId, in.Fh)
}

// Flush waits for streamed writes and tells their errors. The kernel itself writes mapped pages back before it asks.
func (f *fsys) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	switch {
	case !f.streams: // no write is ever streamed: the kernel need not ask again
		return fuse.ENOSYS
	case isLocal(in.NodeId):
		return fuse.OK
	}
	return f.status(f.stream.flush(f.ctx, caller(&in.InHeader), in.NodeId, in.Fh))
}

func (f *fsys) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isLocal(in.NodeId) {
		return fuse.OK // exists only as long as it is open
	}
	f.useOwn(&in.InHeader, in.Fh, 0, false)
	return f.status(f.remote.Fsync(f.ctx, caller(&in.InHeader), in.NodeId, in.Fh, in.FsyncFlags&1 != 0))
}

func (f *fsys) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if isLocal(in.NodeId) {
		return f.status(f.ov.fallocate(in.NodeId, in.Mode, int64(in.Offset), int64(in.Length)))
	}
	f.clock.begin()
	defer f.clock.end()
	end := in.Offset + in.Length
	if in.Mode&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0 {
		end = noEnd
	}
	defer f.watch.wrote(in.NodeId, in.Offset, end)
	return f.status(f.remote.Fallocate(f.ctx, caller(&in.InHeader), in.NodeId, in.Fh, in.Mode, int64(in.Offset), int64(in.Length)))
}

func (f *fsys) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	var pos int64
	var err error
	if isLocal(in.NodeId) {
		pos, err = f.ov.lseek(in.NodeId, int64(in.Offset), in.Whence)
	} else {
		f.useOwn(&in.InHeader, in.Fh, 0, false)
		pos, err = f.remote.Lseek(f.ctx, in.NodeId, in.Fh, int64(in.Offset), in.Whence)
	}
	out.Offset = uint64(pos)
	return f.status(err)
}

// CopyFileRange copies inside the source. EXDEV makes the kernel read and write instead.
func (f *fsys) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if isLocal(in.NodeId) || isLocal(in.NodeIdOut) {
		return 0, fuse.EXDEV
	}
	f.useOwn(&in.InHeader, in.FhIn, 0, false)
	f.clock.begin()
	defer f.clock.end()
	n, err := f.remote.CopyRange(f.ctx, caller(&in.InHeader), in.NodeId, in.FhIn, int64(in.OffIn), in.NodeIdOut, in.FhOut, int64(in.OffOut), in.Len)
	f.watch.wrote(in.NodeIdOut, in.OffOut, in.OffOut+in.Len)
	return n, f.status(err)
}
