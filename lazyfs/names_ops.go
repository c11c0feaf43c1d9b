package lazyfs

import (
	"context"
	"slices"

	"github.com/lazymig/lazymig/wire"
)

// What changes names or attributes, for dirNames.

func (x *dirNames) SetAttr(ctx context.Context, who wire.FileCaller, node uint64, s wire.FileSetAttr) (wire.FileAttr, error) {
	defer x.changes(node)()
	return x.Remote.SetAttr(ctx, who, node, s)
}

func (x *dirNames) Write(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte) (int, error) {
	defer x.changes(node)()
	return x.Remote.Write(ctx, who, node, h, off, flags, b)
}

func (x *dirNames) Fallocate(ctx context.Context, who wire.FileCaller, node, h uint64, mode uint32, off, n int64) error {
	defer x.changes(node)()
	return x.Remote.Fallocate(ctx, who, node, h, mode, off, n)
}

func (x *dirNames) CopyRange(ctx context.Context, who wire.FileCaller, node, h uint64, off int64, node2, h2 uint64, off2 int64, n uint64) (uint32, error) {
	defer x.changes(node2)()
	return x.Remote.CopyRange(ctx, who, node, h, off, node2, h2, off2, n)
}

func (x *dirNames) SetXattr(ctx context.Context, who wire.FileCaller, node uint64, name string, v []byte, flags uint32, kill bool) error {
	defer x.changes(node)()
	return x.Remote.SetXattr(ctx, who, node, name, v, flags, kill)
}

func (x *dirNames) RemoveXattr(ctx context.Context, who wire.FileCaller, node uint64, name string) error {
	defer x.changes(node)()
	return x.Remote.RemoveXattr(ctx, who, node, name)
}

func (x *dirNames) Symlink(ctx context.Context, who wire.FileCaller, dir uint64, name, target string) (wire.FileEntry, error) {
	defer x.renames(nameKey{dir, name})()
	return x.Remote.Symlink(ctx, who, dir, name, target)
}

func (x *dirNames) Mknod(ctx context.Context, who wire.FileCaller, dir uint64, name string, mode, umask, rdev uint32) (wire.FileEntry, error) {
	defer x.renames(nameKey{dir, name})()
	return x.Remote.Mknod(ctx, who, dir, name, mode, umask, rdev)
}

func (x *dirNames) Mkdir(ctx context.Context, who wire.FileCaller, dir uint64, name string, mode, umask uint32) (wire.FileEntry, error) {
	defer x.renames(nameKey{dir, name})()
	return x.Remote.Mkdir(ctx, who, dir, name, mode, umask)
}

func (x *dirNames) Create(ctx context.Context, who wire.FileCaller, dir uint64, name string, flags, mode, umask uint32) (uint64, wire.FileEntry, error) {
	defer x.renames(nameKey{dir, name})()
	return x.Remote.Create(ctx, who, dir, name, flags, mode, umask)
}

func (x *dirNames) Unlink(ctx context.Context, who wire.FileCaller, dir uint64, name string) error {
	defer x.renames(nameKey{dir, name})()
	return x.Remote.Unlink(ctx, who, dir, name)
}

func (x *dirNames) Rmdir(ctx context.Context, who wire.FileCaller, dir uint64, name string) error {
	defer x.renames(nameKey{dir, name})()
	return x.Remote.Rmdir(ctx, who, dir, name)
}

func (x *dirNames) Rename(ctx context.Context, who wire.FileCaller, dir uint64, name string, dir2 uint64, name2 string, flags uint32) error {
	defer x.renames(nameKey{dir, name}, nameKey{dir2, name2})()
	return x.Remote.Rename(ctx, who, dir, name, dir2, name2, flags)
}

func (x *dirNames) Link(ctx context.Context, who wire.FileCaller, node, dir uint64, name string) (wire.FileEntry, error) {
	defer x.renames(nameKey{dir, name})()
	defer x.changes(node)()
	return x.Remote.Link(ctx, who, node, dir, name)
}

// changes is around a change of nodes' attributes.
func (x *dirNames) changes(nodes ...uint64) (done func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, node := range nodes {
		x.beginLocked(node)
		if k, ok := x.owner[node]; ok {
			x.giveBackLocked(x.dirs[k.dir].names[k.name])
		}
	}
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, node := range nodes {
			x.endLocked(node)
		}
	}
}

// renames is around a change of names, each of which changes its directory, too.
func (x *dirNames) renames(keys ...nameKey) (done func()) {
	dirs := make([]uint64, 0, len(keys))
	x.mu.Lock()
	for _, k := range keys {
		dirs = append(dirs, k.dir)
		x.beginLocked(k)
		d := x.dirs[k.dir]
		if d == nil || d.names == nil {
			continue
		}
		if n := d.names[k.name]; n != nil {
			x.giveBackLocked(n)
			delete(d.names, k.name)
			x.count--
		}
		x.unsureLocked(d, k.name)
	}
	x.mu.Unlock()
	attrs := x.changes(slices.Compact(dirs)...)
	return func() {
		attrs()
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, k := range keys {
			x.endLocked(k)
		}
	}
}

func (x *dirNames) beginLocked(key any) {
	x.changing[key]++
	for f := range x.fetches {
		f.touched[key] = struct{}{}
	}
}

func (x *dirNames) endLocked(key any) {
	if x.changing[key]--; x.changing[key] == 0 {
		delete(x.changing, key)
	}
}
