package memory

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Watched is a descriptor that the loop watches beside the userfaultfds. So one thread reads faults, takes answers and
// fills: on a busy host nothing that a stopped thread waits for has to wait for the turn of another thread, or for a lock
// whose holder is not running. All methods are called by the loop, without the engine's lock.
type Watched interface {
	// FD is the descriptor, open until Ended.
	FD() int
	// Read takes what there is without waiting. It may call the engine for threads that wait; it leaves the rest to Work.
	Read() error
	// Work does one piece of what can wait and says whether there is more. It may call BroughtInLoop.
	Work() (more bool)
	// Ended is the last call: Read has failed, or the engine was closed.
	Ended(error)
}

// Watch lets the loop watch w until its end.
func (e *Engine) Watch(w Watched) error {
	e.mu.Lock()
	defer e.unlock()
	if e.closed {
		return fmt.Errorf("watch descriptor: %w", ErrClosed)
	}
	if err := e.startLoop(); err != nil {
		return err
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(w.FD())}
	if err := unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, w.FD(), &ev); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	e.watched = append(e.watched, w)
	return nil
}

// unwatch ends w, if that has not been done.
func (e *Engine) unwatch(w Watched, why error) {
	found := false
	e.mu.Lock()
	for i, x := range e.watched {
		if x == w {
			e.watched = append(e.watched[:i:i], e.watched[i+1:]...) // somebody may range over it
			_ = unix.EpollCtl(e.epoll, unix.EPOLL_CTL_DEL, w.FD(), nil)
			found = true
			break
		}
	}
	e.unlock()
	if found {
		w.Ended(why)
	}
}

// takeEvents marks the mms that have something to say as unsettled, and returns what else is readable. The lock is held.
func (e *Engine) takeEvents(evs []unix.EpollEvent) (readable []Watched) {
	for _, ev := range evs {
		if int(ev.Fd) == e.kick {
			var b [8]byte
			_, _ = unix.Read(e.kick, b[:])
			continue
		}
		// A child's descriptor may have been closed, and its number used again, since.
		if m := e.mms[int(ev.Fd)]; m != nil {
			m.settled = false
			continue
		}
		for _, w := range e.watched {
			if w.FD() == int(ev.Fd) {
				readable = append(readable, w)
			}
		}
	}
	return readable
}

// read lets those read that can; the lock is not held. Who fails is ended by endFailed: it may be in the middle of Work.
func (e *Engine) read(readable []Watched) {
	for _, w := range readable {
		if err := w.Read(); err != nil {
			e.failed = append(e.failed, failedWatch{w, err})
		}
	}
}

// failedWatch is one whose Read has failed.
type failedWatch struct {
	w   Watched
	err error
}

// endFailed ends them, once.
func (e *Engine) endFailed() {
	for _, f := range e.failed {
		e.unwatch(f.w, f.err)
	}
	e.failed = nil
}

// work lets those work that have something to do.
func (e *Engine) work() (more bool) {
	e.mu.Lock()
	all := e.watched
	e.unlock()
	for _, w := range all {
		if w.Work() {
			more = true
		}
	}
	return more
}

// endWatched is the loop's end.
func (e *Engine) endWatched() {
	for {
		e.mu.Lock()
		all := e.watched
		e.unlock()
		if len(all) == 0 {
			return
		}
		for _, w := range all {
			e.unwatch(w, ErrClosed)
		}
	}
}

// BroughtInLoop is Brought for Work.
func (e *Engine) BroughtInLoop(id uint64, runs []Run, data []byte) error {
	return e.brought(id, runs, data, e.faultsBetween)
}

// faultsBetween looks for faults and answers in the middle of a bulk answer, in the loop. The lock is released meanwhile.
func (e *Engine) faultsBetween() {
	var evs [8]unix.EpollEvent
	n, err := unix.EpollWait(e.epoll, evs[:], 0)
	if n <= 0 || err != nil {
		return // an error is seen by the loop
	}
	readable := e.takeEvents(evs[:n])
	for _, m := range e.mms {
		if !m.settled {
			e.settle(m) // else the loop does it
		}
	}
	e.unlock()
	e.read(readable)
	e.mu.Lock()
}

// lockFirst takes the lock before a bulk answer goes on.
func (e *Engine) lockFirst() {
	e.first.Add(1)
	e.mu.Lock()
	e.first.Add(-1)
}

// letFaultsIn lets those go first who have called lockFirst. The lock is released meanwhile: nothing that was looked up
// under it may be used after.
func (e *Engine) letFaultsIn() {
	if e.first.Load() == 0 {
		return
	}
	e.unlock()
	for i := 0; i < 1000 && e.first.Load() > 0; i++ {
		runtime.Gosched() // a mutex does not hand itself over
	}
	e.mu.Lock()
}
