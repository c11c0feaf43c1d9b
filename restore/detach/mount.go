package detach

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Bind is a directory or file of this host that the new root has at Path.
type Bind struct{ Path, Target string }

// Local is where the files are.
type Local struct {
	Root  string            // directory that becomes the root
	Binds []Bind            // parents before what is below them
	Files map[uint64]string // inode of the old file system → path below the new root
}

// mounts changes the mount namespace of the tree.
type mounts struct {
	ns   *fsThread // in it
	root int       // the new root, not attached at first
	undo []func() error
}

// mountPoint is a line of mountinfo.
type mountPoint struct {
	id, parent int
	dev        uint64
	path       string
}

var octal = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func mountsOf(pid int) ([]mountPoint, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	var all []mountPoint
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		var m mountPoint
		var major, minor uint32
		if _, err := fmt.Sscanf(strings.Join(f[:3], " "), "%d %d %d:%d", &m.id, &m.parent, &major, &minor); err != nil {
			return nil, fmt.Errorf("mountinfo %q: %w", line, err)
		}
		m.dev, m.path = unix.Mkdev(major, minor), octal.Replace(f[4])
		all = append(all, m)
	}
	return all, nil
}

const shmPath = "/dev/shm"

// plan divides what is mounted: what moves to the new root, and whether /dev/shm is a part of the old file system that is bound there.
func planMounts(all []mountPoint, dev uint64) (move []string, shm bool, err error) {
	root := 0
	for _, m := range all {
		if m.path == "/" {
			root = m.id // the topmost is the last
		}
	}
	for _, m := range all {
		switch {
		case m.id == root:
		case m.dev == dev && m.path == shmPath:
			shm = true
		case m.dev == dev:
			return nil, false, &Stuck{[]string{fmt.Sprintf("a part of it is mounted at %s, too", m.path)}}
		case m.parent == root:
			move = append(move, m.path)
		}
	}
	return move, shm, nil
}

// newMounts opens what becomes the root and what is bound in it, in this process's mount namespace, and joins the tree's.
func newMounts(l Local, pid int) (*mounts, []int, error) {
	m := &mounts{root: -1}
	var err error
	if m.root, err = unix.OpenTree(unix.AT_FDCWD, l.Root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("take %s as a mount: %w", l.Root, err)
	}
	var binds []int
	for _, b := range l.Binds {
		fd, err := unix.OpenTree(unix.AT_FDCWD, b.Target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			m.close()
			closeAll(binds)
			return nil, nil, fmt.Errorf("take %s as a mount: %w", b.Target, err)
		}
		binds = append(binds, fd)
	}
	if m.ns, err = enterMounts(pid); err != nil {
		m.close()
		closeAll(binds)
		return nil, nil, err
	}
	return m, binds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// attach mounts the new root in the old one, and moves all that is mounted below the old one to the new one. back undoes it.
func (m *mounts) attach(l Local, binds []int, stay *staying, old *oldRoot, move []string, shm bool) error {
	defer closeAll(binds)
	return m.ns.do(func() error {
		if err := moveMount(m.root, "", old.place, ""); err != nil {
			return fmt.Errorf("mount new root: %w", err)
		}
		m.undo = append(m.undo, func() error {
			if err := unix.Fchdir(m.root); err != nil {
				return err
			}
			return unix.Unmount(".", unix.MNT_DETACH)
		})
		late := func(p string) bool { // it lies in something that is moved
			return slices.ContainsFunc(move, func(dir string) bool { return strings.HasPrefix(p, dir+"/") })
		}
		bind := func(lateOnes bool) error {
			for i, b := range l.Binds {
				if late(b.Path) != lateOnes {
					continue
				}
				if err := moveMount(binds[i], "", m.root, below(b.Path)); err != nil {
					return fmt.Errorf("bind %s at %s: %w", b.Target, b.Path, err)
				}
				if lateOnes {
					m.undo = append(m.undo, func() error {
						if err := unix.Fchdir(m.root); err != nil {
							return err
						}
						return unix.Unmount(below(b.Path), unix.MNT_DETACH)
					})
				}
			}
			return nil
		}
		if err := bind(false); err != nil {
			return err
		}
		for i, p := range stay.paths { // they go with the new root if that is undone
			if err := moveMount(stay.mounts[i], "", m.root, below(p)); err != nil {
				return fmt.Errorf("mount %s, which stays at the source: %w", p, err)
			}
		}
		if shm && !slices.ContainsFunc(l.Binds, func(b Bind) bool { return b.Path == shmPath }) {
			fd, err := m.newShm()
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			l.Binds, binds = append(slices.Clone(l.Binds), Bind{Path: shmPath, Target: "the tree's own"}), append(slices.Clone(binds), fd)
		}
		for i, p := range move {
			if err := moveMount(old.moved[i], "", m.root, below(p)); err != nil {
				return fmt.Errorf("move mount %s: %w", p, err)
			}
			m.undo = append(m.undo, func() error { return moveMount(m.root, below(p), unix.AT_FDCWD, p) })
		}
		if shm { // What is bound there goes back below the old root, and away with it.
			if err := moveMount(m.root, below(shmPath), unix.AT_FDCWD, shmPath); err != nil {
				return fmt.Errorf("move mount %s: %w", shmPath, err)
			}
			m.undo = append(m.undo, func() error { return moveMount(unix.AT_FDCWD, shmPath, m.root, below(shmPath)) })
		}
		return bind(true)
	})
}

// newShm makes what is mounted at /dev/shm: the new root's, or else memory.
func (m *mounts) newShm() (int, error) {
	fd, err := unix.OpenTree(m.root, below(shmPath), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if !errors.Is(err, unix.ENOENT) {
		if err != nil {
			return -1, fmt.Errorf("take new /dev/shm as a mount: %w", err)
		}
		return fd, nil
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make /dev/shm: %w", err)
	}
	defer unix.Close(fs)
	if err = unix.FsconfigSetString(fs, "mode", "1777"); err == nil {
		if err = unix.FsconfigCreate(fs); err == nil {
			fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("make /dev/shm: %w", err)
	}
	return fd, nil
}

func below(p string) string { return strings.TrimPrefix(p, "/") }

func moveMount(from int, fromPath string, to int, toPath string) error {
	flags := 0
	if fromPath == "" {
		flags |= unix.MOVE_MOUNT_F_EMPTY_PATH
	}
	if toPath == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	return unix.MoveMount(from, fromPath, to, toPath, flags)
}

// back undoes what attach has done.
func (m *mounts) back() error {
	return m.ns.do(func() error {
		var first error
		for _, undo := range slices.Backward(m.undo) {
			if err := undo(); err != nil && first == nil {
				first = fmt.Errorf("undo mounts: %w", err)
			}
		}
		m.undo = nil
		return first
	})
}

// pivot makes the new root the root of all tasks whose root or directory the old one was (fs/namespace.c, chroot_fs_refs), and unmounts the old one.
func (m *mounts) pivot() error {
	return m.ns.do(func() error {
		if err := unix.Fchdir(m.root); err != nil {
			return fmt.Errorf("enter new root: %w", err)
		}
		if err := unix.PivotRoot(".", "."); err != nil {
			return fmt.Errorf("pivot root: %w", err)
		}
		m.undo = nil
		// The old one lies over the new one now.
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return &Broken{fmt.Errorf("unmount old root: %w", err)}
		}
		return nil
	})
}

func (m *mounts) close() {
	m.ns.close()
	if m.root >= 0 {
		unix.Close(m.root)
	}
}
