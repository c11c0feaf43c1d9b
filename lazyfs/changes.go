package lazyfs

import (
	"context"
	"slices"

	"github.com/lazymig/lazymig/wire"
)

// changes is the layer through which all goes that the tree changes at the source: whoever knows anything of it is told before it begins, and when it has
// ended. So what is known at any time is what the source would say to who asks then.
type changes struct {
	Remote
	knowers []knower
}

// knower knows something of the source's files. When begins returns, it knows nothing of what the change is about, and learns nothing of it until ended.
type knower interface {
	begins(c *change)
	ended(c *change)
}

// change is what an operation may change.
type change struct {
	nodes  []uint64  // attributes
	data   uint64    // contents of this node; 0: of none
	names  []nameKey // that come, go, or lead elsewhere; each changes its directory's attributes, too
	leaves bool      // a node that is not told loses a name, or has another
}

// dirs are the directories of names.
func (c *change) dirs() []uint64 {
	var dirs []uint64
	for _, k := range c.names {
		if !slices.Contains(dirs, k.dir) {
			dirs = append(dirs, k.dir)
		}
	}
	return dirs
}

// begin is before a change; done is after it.
func (x *changes) begin(c change) (done func()) {
	for _, k := range x.knowers {
		k.begins(&c)
	}
	return func() {
		for _, k := range x.knowers {
			k.ended(&c)
		}
	}
}

// attrs, contents and named are the kinds of changes.
func (x *changes) attrs(node uint64) (done func()) { return x.begin(change{nodes: []uint64{node}}) }

func (x *changes) contents(node uint64) (done func()) {
	return x.begin(change{nodes: []uint64{node}, data: node})
}

func (x *changes) named(dir uint64, name string) (done func()) {
	return x.begin(change{names: []nameKey{{dir, name}}})
}

func (x *changes) SetAttr(ctx context.Context, who wire.FileCaller, node uint64, s wire.FileSetAttr) (wire.FileAttr, error) {
	if s.Valid&wire.FileSetSize != 0 {
		defer x.contents(node)()
	} else {
		defer x.attrs(node)()
	}
	return x.Remote.SetAttr(ctx, who, node, s)
}

func (x *changes) Write(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte) (int, error) {
	defer x.contents(node)()
	return x.Remote.Write(ctx, who, node, h, off, flags, b)
}

func (x *changes) Fallocate(ctx context.Context, who wire.FileCaller, node, h uint64, mode uint32, off, n int64) error {
	defer x.contents(node)()
	return x.Remote.Fallocate(ctx, who, node, h, mode, off, n)
}

func (x *changes) CopyRange(ctx context.Context, who wire.FileCaller, node, h uint64, off int64, node2, h2 uint64, off2 int64, n uint64) (uint32, error) {
	defer x.contents(node2)()
	return x.Remote.CopyRange(ctx, who, node, h, off, node2, h2, off2, n)
}

func (x *changes) SetXattr(ctx context.Context, who wire.FileCaller, node uint64, name string, v []byte, flags uint32, kill bool) error {
	defer x.attrs(node)()
	return x.Remote.SetXattr(ctx, who, node, name, v, flags, kill)
}

func (x *changes) RemoveXattr(ctx context.Context, who wire.FileCaller, node uint64, name string) error {
	defer x.attrs(node)()
	return x.Remote.RemoveXattr(ctx, who, node, name)
}

func (x *changes) Symlink(ctx context.Context, who wire.FileCaller, dir uint64, name, target string) (wire.FileEntry, error) {
	defer x.named(dir, name)()
	return x.Remote.Symlink(ctx, who, dir, name, target)
}

func (x *changes) Mknod(ctx context.Context, who wire.FileCaller, dir uint64, name string, mode, umask, rdev uint32) (wire.FileEntry, error) {
	defer x.named(dir, name)()
	return x.Remote.Mknod(ctx, who, dir, name, mode, umask, rdev)
}

func (x *changes) Mkdir(ctx context.Context, who wire.FileCaller, dir uint64, name string, mode, umask uint32) (wire.FileEntry, error) {
	defer x.named(dir, name)()
	return x.Remote.Mkdir(ctx, who, dir, name, mode, umask)
}

func (x *changes) Create(ctx context.Context, who wire.FileCaller, dir uint64, name string, flags, mode, umask uint32) (uint64, wire.FileEntry, error) {
	defer x.named(dir, name)()
	h, e, err := x.Remote.Create(ctx, who, dir, name, flags, mode, umask)
	if err == nil {
		x.contents(e.Node)() // it may have been there, and was truncated
	}
	return h, e, err
}

func (x *changes) Unlink(ctx context.Context, who wire.FileCaller, dir uint64, name string) error {
	defer x.begin(change{names: []nameKey{{dir, name}}, leaves: true})()
	return x.Remote.Unlink(ctx, who, dir, name)
}

func (x *changes) Rmdir(ctx context.Context, who wire.FileCaller, dir uint64, name string) error {
	defer x.begin(change{names: []nameKey{{dir, name}}, leaves: true})()
	return x.Remote.Rmdir(ctx, who, dir, name)
}

func (x *changes) Rename(ctx context.Context, who wire.FileCaller, dir uint64, name string, dir2 uint64, name2 string, flags uint32) error {
	defer x.begin(change{names: []nameKey{{dir, name}, {dir2, name2}}, leaves: true})()
	return x.Remote.Rename(ctx, who, dir, name, dir2, name2, flags)
}

func (x *changes) Link(ctx context.Context, who wire.FileCaller, node, dir uint64, name string) (wire.FileEntry, error) {
	defer x.begin(change{nodes: []uint64{node}, names: []nameKey{{dir, name}}})()
	return x.Remote.Link(ctx, who, node, dir, name)
}
