package lazyfs

import (
	"context"

	"github.com/lazymig/lazymig/wire"
)

// Remote is the source's files: remotefs.Client, which waits while there is no connection. An error without an errno means that it has ended.
type Remote interface {
	Lookup(ctx context.Context, who wire.FileCaller, dir uint64, name string) (wire.FileEntry, error)
	Forget(f []wire.FileForget)
	GetAttr(ctx context.Context, node uint64) (wire.FileAttr, error)
	SetAttr(ctx context.Context, who wire.FileCaller, node uint64, s wire.FileSetAttr) (wire.FileAttr, error)
	Readlink(ctx context.Context, node uint64) ([]byte, error)
	Symlink(ctx context.Context, who wire.FileCaller, dir uint64, name, target string) (wire.FileEntry, error)
	Mknod(ctx context.Context, who wire.FileCaller, dir uint64, name string, mode, umask, rdev uint32) (wire.FileEntry, error)
	Mkdir(ctx context.Context, who wire.FileCaller, dir uint64, name string, mode, umask uint32) (wire.FileEntry, error)
	Unlink(ctx context.Context, who wire.FileCaller, dir uint64, name string) error
	Rmdir(ctx context.Context, who wire.FileCaller, dir uint64, name string) error
	Rename(ctx context.Context, who wire.FileCaller, dir uint64, name string, dir2 uint64, name2 string, flags uint32) error
	Link(ctx context.Context, who wire.FileCaller, node, dir uint64, name string) (wire.FileEntry, error)
	Open(ctx context.Context, who wire.FileCaller, node uint64, flags uint32) (uint64, error)
	Create(ctx context.Context, who wire.FileCaller, dir uint64, name string, flags, mode, umask uint32) (uint64, wire.FileEntry, error)
	Tmpfile(ctx context.Context, who wire.FileCaller, dir uint64, flags, mode, umask uint32) (uint64, wire.FileEntry, error)
	Read(ctx context.Context, node, h, off uint64, b []byte) (int, error)
	Write(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte) (int, error)
	Stream(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte, sent func()) error
	Statfs(ctx context.Context, node uint64) (wire.FileStatfs, error)
	Release(node, h uint64)
	Fsync(ctx context.Context, who wire.FileCaller, node, h uint64, data bool) error
	SetXattr(ctx context.Context, who wire.FileCaller, node uint64, name string, v []byte, flags uint32, kill bool) error
	GetXattr(ctx context.Context, node uint64, name string, size uint32) (uint32, []byte, error)
	ListXattr(ctx context.Context, node uint64, size uint32) (uint32, []byte, error)
	RemoveXattr(ctx context.Context, who wire.FileCaller, node uint64, name string) error
	OpenDir(ctx context.Context, who wire.FileCaller, node uint64) (uint64, error)
	OpenAs(who wire.FileCaller, node, h uint64, flags uint32, dir bool)
	ReadDir(ctx context.Context, node, h, off uint64, size uint32, plus bool) ([]wire.FileDirent, bool, error)
	Tree(ctx context.Context, node uint64, here, below int) ([]wire.FileTree, error)
	Fallocate(ctx context.Context, who wire.FileCaller, node, h uint64, mode uint32, off, n int64) error
	Lseek(ctx context.Context, node, h uint64, off int64, whence uint32) (int64, error)
	CopyRange(ctx context.Context, who wire.FileCaller, node, h uint64, off int64, node2, h2 uint64, off2 int64, n uint64) (uint32, error)

	// For the successor of a daemon: see remotefs' client_succeed.go.
	TakeOver(ctx context.Context) error
	TakenOver(again map[uint64]bool)
	Settled(number uint64)
}
