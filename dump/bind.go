package dump

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
)

// nsThread runs functions on one thread that lives in the tree's mount namespace, root and working directory there.
type nsThread struct {
	calls chan func()
	done  chan struct{}
	once  sync.Once
}

func startNSThread(mnt *os.File) (*nsThread, error) {
	t := &nsThread{calls: make(chan func()), done: make(chan struct{})}
	errc := make(chan error, 1)
	go func() {
		defer close(t.done)
		criu.OnThrowawayThread(func() {
			err := enterMount(mnt)
			errc <- err
			if err != nil {
				return
			}
			for f := range t.calls {
				f()
			}
		})
	}()
	if err := <-errc; err != nil {
		<-t.done
		return nil, err
	}
	return t, nil
}

// enterMount moves the calling thread; it must be locked.
func enterMount(mnt *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave shared working directory: %w", err)
	}
	if err := unix.Setns(int(mnt.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace of the tree: %w", err)
	}
	return nil
}

func (t *nsThread) do(f func() error) error {
	errc := make(chan error, 1)
	t.calls <- func() { errc <- f() }
	return <-errc
}

// close ends the thread. May be called more than once; not while do runs.
func (t *nsThread) close() {
	t.once.Do(func() { close(t.calls) })
	<-t.done
}

// smapsPath is the file over which a copy is bound, as the tree's mount namespace has it.
func smapsPath(vpid uint32) string { return fmt.Sprintf("/proc/%d/smaps", vpid) }

// bindSmaps mounts file over the path. The file's mount is cloned here, where it is visible, and attached there: a bind
// by path would be refused across mount namespaces. Where /proc is a shared mount the bind is seen by its peers too, for
// the few milliseconds until it is removed.
func bindSmaps(t *nsThread, file *os.File, path string) error {
	tree, err := unix.OpenTree(int(file.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("bind over %s: clone mount: %w", path, err)
	}
	defer unix.Close(tree)
	err = t.do(func() error { return unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH) })
	if err != nil {
		return fmt.Errorf("bind over %s: %w", path, err)
	}
	return nil
}

// unbindSmaps removes a bind; one that is not there is no error. Runs on a thread in the tree's mount namespace.
func unbindSmaps(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // EINVAL: not a mount point
		return fmt.Errorf("remove bind over %s: %w", path, err)
	}
	return nil
}
