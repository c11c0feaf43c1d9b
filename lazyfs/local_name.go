package lazyfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// nameAll is Daemon.NameLocals.
func (o *overlay) nameAll(dir string) (map[uint64]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	names := map[uint64]string{}
	for id, l := range o.locals {
		if l.lookups == 0 && l.opens == 0 {
			continue
		}
		name := fmt.Sprintf("local-%x", id&^localBit)
		if err := l.link(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("name local file %x: %w", id, err)
		}
		names[id] = name
	}
	return names, nil
}

// link gives the node a name outside.
func (l *local) link(path string) error {
	var err error
	switch {
	case l.file != nil:
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", l.file.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	case l.mode&syscall.S_IFMT == syscall.S_IFLNK:
		err = os.Symlink(l.target, path)
	case l.mode&syscall.S_IFMT == syscall.S_IFDIR:
		err = os.Mkdir(path, 0o700)
	default:
		err = unix.Mknod(path, l.mode, int(l.attr.Rdev))
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Lchown(path, int(l.attr.UID), int(l.attr.GID)); err != nil {
		return err
	}
	if l.mode&syscall.S_IFMT != syscall.S_IFLNK {
		if err := unix.Chmod(path, l.mode&0o7777); err != nil {
			return err
		}
	}
	for name, v := range l.xattrs {
		if err := unix.Lsetxattr(path, name, v, 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
