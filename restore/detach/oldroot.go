package detach

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// oldRoot are places on the old file system that the new root needs to get to its own, opened while somebody serves them, and while nothing has
// been changed: from then on nobody is asked for a name.
type oldRoot struct {
	place int   // the directory that the new root is mounted on
	moved []int // roots of what is mounted below the old one and moves
}

func (r *oldRoot) close() {
	if r.place >= 0 {
		unix.Close(r.place)
	}
	closeAll(r.moved)
	r.place, r.moved = -1, nil
}

// places are where the new root may be mounted before it is one: a directory of the old root that nothing is mounted on. Not over "/": the kernel
// takes a task for chrooted whose root is not on top (fs/namespace.c, current_chrooted), and makes no user namespace for it.
var places = []string{"/tmp", "/usr", "/etc", "/var", "/root", "/home", "/opt", "/mnt"}

// openOldRoot opens what is needed for these mounts.
func (o *Options) openOldRoot(ctx context.Context, move []string, shm bool) (*oldRoot, error) {
	return bounded(ctx, "open the old root", func() (*oldRoot, error) {
		t, err := enterMounts(o.MountNS)
		if err != nil {
			return nil, err
		}
		defer t.close()
		r := &oldRoot{place: -1}
		if err := t.do(func() error { return r.open(o.Dev, move, shm) }); err != nil {
			r.close()
			return nil, err
		}
		return r, nil
	})
}

// open runs where the old root is "/".
func (r *oldRoot) open(dev uint64, move []string, shm bool) error {
	for _, p := range places {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Dev == dev {
			r.place = fd
			break
		}
		unix.Close(fd)
	}
	if r.place < 0 {
		return fmt.Errorf("mount new root: none of %v is a directory of the old one: %w", places, unix.ENOENT)
	}
	for _, p := range move {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open mount %s: %w", p, err)
		}
		r.moved = append(r.moved, fd)
	}
	return freshen(move, shm)
}

// freshen has the kernel know the directories that lie below what moves as well as if they had just been looked up: one of them is needed when /dev/shm goes
// back, and all of them if everything does. They are reached by a copy of the mount without those on it.
func freshen(move []string, shm bool) error {
	root, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("take the old root as a mount: %w", err)
	}
	defer unix.Close(root)
	if shm {
		move = append([]string{shmPath}, move...)
	}
	for _, p := range move {
		var st unix.Stat_t
		if err := unix.Fstatat(root, below(p), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil && !errors.Is(err, unix.ENOENT) { // that: removed meanwhile
			return fmt.Errorf("look at %s of the old root: %w", p, err)
		}
	}
	return nil
}

// enterMounts makes a thread whose root is that of a process.
func enterMounts(pid int) (*fsThread, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, fmt.Errorf("enter mount namespace of the tree: %w", err)
	}
	defer ns.Close()
	t, err := newFSThread(func() error { return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS) })
	if err != nil {
		return nil, fmt.Errorf("enter mount namespace of the tree: %w", err)
	}
	return t, nil
}

// bounded runs what asks whoever serves the old file system, so it comes before anything is changed. That may take for ever, if nobody does: a thread that waits in the
// kernel then is left to its fate, and the tree goes on.
func bounded[T any](ctx context.Context, what string, f func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, writeTime, errors.New("the source does not answer"))
	defer cancel()
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}
