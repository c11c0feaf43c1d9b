package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tree is a detached copy of a mount and what is mounted below it. It is taken
// while its path can still be seen and attached where it shall be.
type tree struct {
	path string
	fd   int
	dir  bool
}

// take copies the tree at path (open_tree(2), Linux 5.2).
func take(path string, readOnly bool) (*tree, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("take mount: %w", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("take mount %s: %w", path, err)
	}
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	return &tree{path: path, fd: fd, dir: fi.IsDir()}, nil
}

// takeAll takes what exists of paths, read-only.
func takeAll(paths []string) ([]*tree, error) {
	var all []*tree
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			return nil, fmt.Errorf("share %s: not an absolute path: %w", p, unix.EINVAL)
		}
		t, err := take(filepath.Clean(p), true)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// attach mounts the tree; the mount point is made.
func (t *tree) attach(at string) error {
	defer t.close()
	if err := makePoint(at, t.dir); err != nil {
		return err
	}
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", t.path, at, err)
	}
	return nil
}

func (t *tree) close() {
	if t.fd >= 0 {
		unix.Close(t.fd)
		t.fd = -1
	}
}

func makePoint(at string, dir bool) error {
	if dir {
		if err := os.MkdirAll(at, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	return f.Close()
}

// dirs is a skeleton: directories and links, with owner and mode, no files.
type dirs []node

type node struct {
	path, link string
	mode       fs.FileMode
	uid, gid   int
}

// skeleton reads the directories below top, to the given depth.
func skeleton(top string, depth int) (dirs, error) {
	var all dirs
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil // gone meanwhile
		}
		if err != nil {
			return err
		}
		if p == top || strings.HasPrefix(filepath.Base(p), "lab-") {
			if p != top && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !d.IsDir() && d.Type() != fs.ModeSymlink {
			return nil
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		n := node{path: p, mode: fi.Mode(), uid: int(st.Uid), gid: int(st.Gid)}
		if d.Type() == fs.ModeSymlink {
			if n.link, err = os.Readlink(p); err != nil {
				return nil // gone meanwhile
			}
		}
		all = append(all, n)
		rel := strings.TrimPrefix(p, top+"/")
		if d.IsDir() && strings.Count(rel, "/")+1 >= depth {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read directories of %s: %w", top, err)
	}
	return all, nil
}

// replay makes the directories below root.
func (d dirs) replay(root string) error {
	for _, n := range d {
		p := root + n.path
		if n.link != "" {
			if err := os.Symlink(n.link, p); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make link: %w", err)
			}
			continue
		}
		if err := os.Mkdir(p, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := os.Chown(p, n.uid, n.gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
		if err := os.Chmod(p, n.mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return nil
}
