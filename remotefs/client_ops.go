package remotefs

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// Lookup finds a name. The node stays until the lookup is forgotten.
func (c *Client) Lookup(ctx context.Context, who wire.FileCaller, dir uint64, name string) (ent wire.FileEntry, err error) {
	e := head(dir, who)
	e.String(name)
	err = c.call(ctx, who.Number, wire.MsgFileLookup, e, ent.Get)
	return ent, err
}

// Forget takes lookups back.
func (c *Client) Forget(f []wire.FileForget) {
	for len(f) > 0 {
		n := min(len(f), wire.MaxForgets)
		e := head(wire.FileRootNode, wire.FileCaller{})
		e.U32(uint32(n))
		for _, x := range f[:n] {
			e.U64(x.Node)
			e.U64(x.Count)
		}
		c.tell(wire.MsgFileForget, e)
		f = f[n:]
	}
}

// Seed asks for what a restore will want to know; frozen: what is different since the tree stands still, as soon as it does.
func (c *Client) Seed(ctx context.Context, frozen bool) (list []wire.FileSeed, err error) {
	e := head(wire.FileRootNode, wire.FileCaller{})
	e.Bool(frozen)
	err = c.call(ctx, 0, wire.MsgFileSeed, e, func(d *wire.Decoder) {
		list = make([]wire.FileSeed, d.Count(wire.FileAttrSize))
		for i := range list {
			list[i].Get(d)
		}
	})
	return list, err
}

// GetAttr is stat.
func (c *Client) GetAttr(ctx context.Context, node uint64) (a wire.FileAttr, err error) {
	err = c.call(ctx, 0, wire.MsgFileGetAttr, head(node, wire.FileCaller{}), a.Get)
	return a, err
}

// SetAttr is chmod, chown, truncate and utimensat.
func (c *Client) SetAttr(ctx context.Context, who wire.FileCaller, node uint64, s wire.FileSetAttr) (a wire.FileAttr, err error) {
	e := head(node, who)
	s.Put(e)
	err = c.call(ctx, who.Number, wire.MsgFileSetAttr, e, a.Get)
	return a, err
}

// Readlink reads a symbolic link.
func (c *Client) Readlink(ctx context.Context, node uint64) ([]byte, error) {
	return c.do(ctx, 0, wire.MsgFileReadlink, nil, head(node, wire.FileCaller{}).B)
}

// Symlink makes a symbolic link.
func (c *Client) Symlink(ctx context.Context, who wire.FileCaller, dir uint64, name, target string) (ent wire.FileEntry, err error) {
	e := head(dir, who)
	e.String(name)
	e.String(target)
	err = c.call(ctx, who.Number, wire.MsgFileSymlink, e, ent.Get)
	return ent, err
}

// Mknod makes a file of any type but a directory or link.
func (c *Client) Mknod(ctx context.Context, who wire.FileCaller, dir uint64, name string, mode, umask, rdev uint32) (ent wire.FileEntry, err error) {
	e := head(dir, who)
	e.String(name)
	e.U32(mode)
	e.U32(umask)
	e.U32(rdev)
	err = c.call(ctx, who.Number, wire.MsgFileMknod, e, ent.Get)
	return ent, err
}

// Mkdir makes a directory.
func (c *Client) Mkdir(ctx context.Context, who wire.FileCaller, dir uint64, name string, mode, umask uint32) (ent wire.FileEntry, err error) {
	e := head(dir, who)
	e.String(name)
	e.U32(mode)
	e.U32(umask)
	err = c.call(ctx, who.Number, wire.MsgFileMkdir, e, ent.Get)
	return ent, err
}

// Unlink removes a name.
func (c *Client) Unlink(ctx context.Context, who wire.FileCaller, dir uint64, name string) error {
	e := head(dir, who)
	e.String(name)
	return c.call(ctx, who.Number, wire.MsgFileUnlink, e, nil)
}

// Rmdir removes an empty directory.
func (c *Client) Rmdir(ctx context.Context, who wire.FileCaller, dir uint64, name string) error {
	e := head(dir, who)
	e.String(name)
	return c.call(ctx, who.Number, wire.MsgFileRmdir, e, nil)
}

// Rename is renameat2.
func (c *Client) Rename(ctx context.Context, who wire.FileCaller, dir uint64, name string, dir2 uint64, name2 string, flags uint32) error {
	e := head(dir, who)
	e.String(name)
	e.U64(dir2)
	e.String(name2)
	e.U32(flags)
	return c.call(ctx, who.Number, wire.MsgFileRename, e, nil)
}

// Link gives a file one name more.
func (c *Client) Link(ctx context.Context, who wire.FileCaller, node, dir uint64, name string) (ent wire.FileEntry, err error) {
	e := head(dir, who)
	e.U64(node)
	e.String(name)
	err = c.call(ctx, who.Number, wire.MsgFileLink, e, ent.Get)
	return ent, err
}

// Open opens a regular file.
func (c *Client) Open(ctx context.Context, who wire.FileCaller, node uint64, flags uint32) (h uint64, err error) {
	e := head(node, who)
	e.U32(flags)
	err = c.call(ctx, who.Number, wire.MsgFileOpen, e, func(d *wire.Decoder) { h = d.U64() })
	return h, err
}

// Create makes a regular file and opens it.
func (c *Client) Create(ctx context.Context, who wire.FileCaller, dir uint64, name string, flags, mode, umask uint32) (h uint64, ent wire.FileEntry, err error) {
	e := head(dir, who)
	e.String(name)
	e.U32(flags)
	e.U32(mode)
	e.U32(umask)
	err = c.call(ctx, who.Number, wire.MsgFileCreate, e, func(d *wire.Decoder) { h = d.U64(); ent.Get(d) })
	return h, ent, err
}

// Tmpfile makes a file without a name and opens it.
func (c *Client) Tmpfile(ctx context.Context, who wire.FileCaller, dir uint64, flags, mode, umask uint32) (h uint64, ent wire.FileEntry, err error) {
	e := head(dir, who)
	e.U32(flags)
	e.U32(mode)
	e.U32(umask)
	err = c.call(ctx, who.Number, wire.MsgFileTmpfile, e, func(d *wire.Decoder) { h = d.U64(); ent.Get(d) })
	return h, ent, err
}

// Read fills b, less only at the end of the file. After an ended ctx b must not be used again.
func (c *Client) Read(ctx context.Context, node, h, off uint64, b []byte) (int, error) {
	return c.read(ctx, wire.MsgFileRead, node, h, off, b)
}

// ReadBulk is Read for nobody who waits.
func (c *Client) ReadBulk(ctx context.Context, node, h, off uint64, b []byte) (int, error) {
	return c.read(ctx, wire.MsgFileBulk, node, h, off, b)
}

func (c *Client) read(ctx context.Context, t wire.Type, node, h, off uint64, b []byte) (int, error) {
	e := head(node, wire.FileCaller{})
	e.U64(h)
	e.U64(off)
	e.U32(uint32(len(b)))
	got, err := c.do(ctx, 0, t, b, e.B)
	return len(got), err
}

// Write writes b; flags are FileWrite….
func (c *Client) Write(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte) (int, error) {
	e := head(node, who)
	e.U64(h)
	e.U64(off)
	e.U32(flags)
	r, err := c.do(ctx, who.Number, wire.MsgFileWrite, nil, e.B, b)
	if err != nil {
		return 0, err
	}
	d := wire.NewDecoder(r)
	n := d.U32()
	if d.End() != nil || uint64(n) > uint64(len(b)) {
		return 0, fmt.Errorf("write of %d bytes answered %x: %w", len(b), r, unix.EIO)
	}
	return int(n), nil
}

// Stream is Write for a writer who has been told that it is done: less than all of b is an error. sent is called when all that is asked later of the same node will be
// done after it.
func (c *Client) Stream(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte, sent func()) error {
	e := head(node, who)
	e.U64(h)
	e.U64(off)
	e.U32(flags)
	p, err := c.send(ctx, who.Number, wire.MsgFileStream, nil, e.B, b)
	if err != nil {
		return err
	}
	sent()
	r, err := c.reply(ctx, p)
	if err != nil {
		return err
	}
	d := wire.NewDecoder(r)
	n := d.U32()
	if d.End() != nil || int(n) != len(b) {
		err := fmt.Errorf("write of %d bytes answered %x", len(b), r)
		c.fail(err)
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

// Statfs tells about the file system of a node.
func (c *Client) Statfs(ctx context.Context, node uint64) (s wire.FileStatfs, err error) {
	err = c.call(ctx, 0, wire.MsgFileStatfs, head(node, wire.FileCaller{}), s.Get)
	return s, err
}

// Release closes a handle.
func (c *Client) Release(node, h uint64) {
	e := head(node, wire.FileCaller{})
	e.U64(h)
	c.tell(wire.MsgFileRelease, e)
}

// Fsync writes a file or directory to the source's disk.
func (c *Client) Fsync(ctx context.Context, who wire.FileCaller, node, h uint64, data bool) error {
	e := head(node, who)
	e.U64(h)
	e.Bool(data)
	return c.call(ctx, who.Number, wire.MsgFileFsync, e, nil)
}

// SetXattr sets an extended attribute; kill: an ACL set by a caller who loses set-group-ID by that.
func (c *Client) SetXattr(ctx context.Context, who wire.FileCaller, node uint64, name string, v []byte, flags uint32, kill bool) error {
	e := head(node, who)
	e.String(name)
	e.U32(flags)
	e.Bool(kill)
	e.Bytes(v)
	return c.call(ctx, who.Number, wire.MsgFileSetXattr, e, nil)
}

// GetXattr reads an extended attribute; size 0 asks for its size only.
func (c *Client) GetXattr(ctx context.Context, node uint64, name string, size uint32) (n uint32, v []byte, err error) {
	e := head(node, wire.FileCaller{})
	e.String(name)
	e.U32(size)
	err = c.call(ctx, 0, wire.MsgFileGetXattr, e, func(d *wire.Decoder) { n = d.U32(); v = d.Rest() })
	return n, v, err
}

// ListXattr lists the names of extended attributes; size 0 asks for the list's size only.
func (c *Client) ListXattr(ctx context.Context, node uint64, size uint32) (n uint32, v []byte, err error) {
	e := head(node, wire.FileCaller{})
	e.U32(size)
	err = c.call(ctx, 0, wire.MsgFileListXattr, e, func(d *wire.Decoder) { n = d.U32(); v = d.Rest() })
	return n, v, err
}

// RemoveXattr removes an extended attribute.
func (c *Client) RemoveXattr(ctx context.Context, who wire.FileCaller, node uint64, name string) error {
	e := head(node, who)
	e.String(name)
	return c.call(ctx, who.Number, wire.MsgFileRemoveXattr, e, nil)
}

// OpenDir opens a directory.
func (c *Client) OpenDir(ctx context.Context, who wire.FileCaller, node uint64) (h uint64, err error) {
	err = c.call(ctx, who.Number, wire.MsgFileOpenDir, head(node, who), func(d *wire.Decoder) { h = d.U64() })
	return h, err
}

// OpenAs opens a file or directory for reading under a handle of the caller's, which has the bit FileOwnHandle and is its own for ever. It does not wait: what
// uses the handle later is told if that failed. If the handle is open already nothing is done. It goes out before the next request, or when one is Settled: so who asked
// for the open has the answer, and runs, before this host and the source are busy with it.
func (c *Client) OpenAs(who wire.FileCaller, node, h uint64, flags uint32, dir bool) {
	e := head(node, who)
	e.U64(h)
	e.U32(flags)
	e.Bool(dir)
	c.tellLater(wire.MsgFileOpenAs, e)
}

// ReadDir reads names from a position on, about size bytes of them; with plus each is looked up too, where possible.
// No names: the end. eof: these are the last.
func (c *Client) ReadDir(ctx context.Context, node, h, off uint64, size uint32, plus bool) (ents []wire.FileDirent, eof bool, err error) {
	e := head(node, wire.FileCaller{})
	e.U64(h)
	e.U64(off)
	e.U32(size)
	e.Bool(plus)
	err = c.call(ctx, 0, wire.MsgFileReadDir, e, func(d *wire.Decoder) {
		eof = d.Bool()
		n := d.Count(8 + 8 + 4 + 4 + 1)
		ents = make([]wire.FileDirent, n)
		for i := range ents {
			ents[i].Get(d)
		}
	})
	return ents, eof, err
}

// Tree reads a whole directory and looks up as many of its names as here says, and goes on below until as many have been looked up there.
func (c *Client) Tree(ctx context.Context, node uint64, here, below int) (list []wire.FileTree, err error) {
	e := head(node, wire.FileCaller{})
	e.U32(uint32(here))
	e.U32(uint32(below))
	err = c.call(ctx, 0, wire.MsgFileTree, e, func(d *wire.Decoder) {
		list = make([]wire.FileTree, d.Count(8+1+4))
		for i := range list {
			list[i].Get(d)
		}
	})
	return list, err
}

// Fallocate is fallocate.
func (c *Client) Fallocate(ctx context.Context, who wire.FileCaller, node, h uint64, mode uint32, off, n int64) error {
	e := head(node, who)
	e.U64(h)
	e.U32(mode)
	e.I64(off)
	e.I64(n)
	return c.call(ctx, who.Number, wire.MsgFileFallocate, e, nil)
}

// Lseek finds data or a hole.
func (c *Client) Lseek(ctx context.Context, node, h uint64, off int64, whence uint32) (pos int64, err error) {
	e := head(node, wire.FileCaller{})
	e.U64(h)
	e.I64(off)
	e.U32(whence)
	err = c.call(ctx, 0, wire.MsgFileLseek, e, func(d *wire.Decoder) { pos = d.I64() })
	return pos, err
}

// CopyRange copies inside the source.
func (c *Client) CopyRange(ctx context.Context, who wire.FileCaller, node, h uint64, off int64, node2, h2 uint64, off2 int64, n uint64) (got uint32, err error) {
	e := head(node, who)
	e.U64(h)
	e.I64(off)
	e.U64(node2)
	e.U64(h2)
	e.I64(off2)
	e.U64(n)
	err = c.call(ctx, who.Number, wire.MsgFileCopyRange, e, func(d *wire.Decoder) { got = d.U32() })
	return got, err
}
