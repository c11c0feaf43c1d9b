package detach

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// fsThread is a thread with a root, a working directory and perhaps a mount namespace of its own.
type fsThread struct {
	work        chan func()
	taken, done chan struct{}
}

func newFSThread(enter func() error) (*fsThread, error) {
	t := &fsThread{work: make(chan func()), taken: make(chan struct{}), done: make(chan struct{})}
	ready := make(chan error)
	var body func()
	body = func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// This one would not end, and /proc/self is what it sees. While it is held here another goroutine gets another thread.
			go body()
			<-t.taken
			runtime.UnlockOSThread()
			return
		}
		close(t.taken)
		defer close(t.done)
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = enter()
		}
		ready <- err
		if err != nil {
			return
		}
		for f := range t.work {
			f()
		}
	}
	go body()
	if err := <-ready; err != nil {
		<-t.done
		return nil, fmt.Errorf("make a thread of another root: %w", err)
	}
	return t, nil
}

func (t *fsThread) do(f func() error) (err error) {
	done := make(chan struct{})
	t.work <- func() { err = f(); close(done) }
	<-done
	return err
}

func (t *fsThread) close() {
	if t != nil {
		close(t.work)
		<-t.done
	}
}
