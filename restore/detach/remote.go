package detach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What stays on the old file system (Options.Remote): each such directory is mounted at its place below the new root. Files in it that are open or mapped are
// left alone: nothing leads from a file to another, so it does not matter that the mount which they were opened by is no longer attached. From a directory ".." leads up
// to the whole of the old file system, so directories are entered and opened anew, by the mount that takes the old one's place.

// stays says whether a path is in what stays.
func (s *survey) stays(path string) bool {
	return slices.ContainsFunc(s.remote, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
}

// leave notes a file that stays, and says whether it is to be opened anew all the same.
func (s *survey) leave(o *object) bool {
	s.left[o.ino] = o.path
	if o.names == 0 {
		s.left[o.ino] = ""
	}
	o.stays = o.mode&unix.S_IFMT == unix.S_IFDIR
	if o.stays && strings.HasSuffix(o.path, " (deleted)") {
		s.stick("a directory that was removed is in use, in what stays at the source: %s", o.path)
	}
	return o.stays
}

// mapsThatMove are those of other files.
func (s *survey) mapsThatMove(tid int, all []vma) (move []vma, err error) {
	for _, v := range all {
		if !s.stays(v.path) {
			move = append(move, v)
		} else if _, err := s.object(fmt.Sprintf("/proc/%d/map_files/%x-%x", tid, v.start, v.end)); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
	}
	return move, nil
}

// apart refuses what can't be told apart: a file that has a name in what stays and one in what moves would be two files, and where a watch is is known
// by an inode number only.
func (s *survey) apart(l Local) error {
	var r []string
	for ino, path := range s.left {
		if here, ok := l.Files[ino]; ok && path != "" {
			r = append(r, fmt.Sprintf("%s stays at the source, but has another name that does not, %s", path, here))
		}
	}
	for _, d := range s.descs {
		for _, w := range d.watch {
			if _, ok := l.Files[w.ino]; !ok && len(s.remote) > 0 {
				r = append(r, fmt.Sprintf("process %d has an inotify descriptor (%d) that watches something in what stays at the source", d.pid, d.fd))
			}
		}
	}
	if len(r) == 0 {
		return nil
	}
	slices.Sort(r)
	return &Stuck{slices.Compact(r)}
}

// staying are mounts of what stays, not attached yet, and what was opened by them.
type staying struct {
	paths  []string
	mounts []int
	descs  map[*description]*os.File
	dirs   map[fileKey]*os.File
}

func (y *staying) close() {
	closeAll(y.mounts)
	y.mounts = nil
	for _, f := range y.descs {
		f.Close()
	}
	for _, f := range y.dirs {
		f.Close()
	}
}

// openStaying opens what stays.
func (o *Options) openStaying(ctx context.Context, s *survey) (*staying, error) {
	if len(o.Remote) == 0 {
		return &staying{}, nil
	}
	return bounded(ctx, "open what stays at the source", func() (*staying, error) {
		t, err := enterMounts(o.MountNS)
		if err != nil {
			return nil, err
		}
		defer t.close()
		y := &staying{paths: o.Remote, descs: map[*description]*os.File{}, dirs: map[fileKey]*os.File{}}
		if err := t.do(func() error { return y.open(o.Dev, s) }); err != nil {
			y.close()
			return nil, err
		}
		return y, nil
	})
}

// open runs where the old root is "/".
func (y *staying) open(dev uint64, s *survey) error {
	for _, p := range y.paths {
		fd, err := unix.OpenTree(unix.AT_FDCWD, p, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return fmt.Errorf("take %s, which stays at the source, as a mount: %w", p, err)
		}
		y.mounts = append(y.mounts, fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Dev != dev || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return &Stuck{[]string{p + " is to stay at the source, but is no directory there"}}
		}
	}
	for _, d := range s.descs {
		if d.obj.stays {
			f, err := y.openDir(&d.obj, d.info.flags&openFlags)
			if err != nil {
				return fmt.Errorf("descriptor %d of process %d: %w", d.fd, d.pid, err)
			}
			y.descs[d] = f
		}
	}
	for _, p := range s.processes {
		for _, o := range []*object{p.cwd, p.root} {
			if o == nil || !o.stays {
				continue
			}
			k := fileKey{o.ino, unix.O_PATH | unix.O_DIRECTORY}
			if y.dirs[k] != nil {
				continue
			}
			f, err := y.openDir(o, k.flags)
			if err != nil {
				return fmt.Errorf("directory of process %d: %w", p.pid, err)
			}
			y.dirs[k] = f
		}
	}
	return nil
}

func (y *staying) openDir(o *object, flags int) (*os.File, error) {
	for i, p := range y.paths {
		rel, err := filepath.Rel(p, o.path)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			continue
		}
		how := unix.OpenHow{
			Flags:   uint64(flags | unix.O_DIRECTORY | unix.O_CLOEXEC),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		}
		fd, err := unix.Openat2(y.mounts[i], rel, &how)
		if err != nil {
			return nil, fmt.Errorf("open %s, which stays at the source: %w", o.path, err)
		}
		f := os.NewFile(uintptr(fd), o.path)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Ino != o.ino {
			f.Close()
			return nil, fmt.Errorf("open %s, which stays at the source: it is another directory now: %w", o.path, unix.ESTALE)
		}
		return f, nil
	}
	return nil, fmt.Errorf("open %s: it is in nothing that stays: %w", o.path, unix.ENOENT)
}

// take gives what was opened to the switch, which closes it.
func (y *staying) take(w *switching) {
	for d, f := range y.descs {
		d.file = f
	}
	maps.Copy(w.opened, y.dirs)
	y.descs, y.dirs = nil, nil
}
