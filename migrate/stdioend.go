package migrate

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// streamEnd is a descriptor that one goroutine reads or writes and others may wake. It never changes the flags of the open file, which
// may be shared with processes that know nothing of lazymig: pipes come here as open files of our own, sockets are asked not to block.
type streamEnd struct {
	fd      int
	socket  bool
	onClose func() // may be nil
	sole    bool   // of a socket: nobody but the tree has it, so that shutdown hurts nobody else

	mu     sync.Mutex // guards what follows
	event  int        // eventfd
	closed bool
}

// newStreamEnd takes fd over. A pipe's must be O_NONBLOCK.
func newStreamEnd(fd int, socket, sole bool) (*streamEnd, error) {
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	return &streamEnd{fd: fd, socket: socket, sole: sole, event: ev}, nil
}

// wake ends a wait, now or the next one.
func (e *streamEnd) wake() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		_, _ = unix.Write(e.event, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // full: it is awake
	}
}

// wait waits for events, an error or hang-up of the other end, or wake (then it returns 0).
func (e *streamEnd) wait(events int16) (int16, error) {
	fds := []unix.PollFd{{Fd: int32(e.event), Events: unix.POLLIN}, {Fd: int32(e.fd), Events: events}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("poll: %w", err)
		}
		if fds[0].Revents != 0 {
			var b [8]byte
			_, _ = unix.Read(e.event, b[:]) // EAGAIN: somebody was faster
			return 0, nil
		}
		return fds[1].Revents, nil
	}
}

// look is what wait would find now.
func (e *streamEnd) look() (int16, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return 0, unix.EBADF
	}
	fds := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return fds[0].Revents, err
	}
}

func (e *streamEnd) read(p []byte) (int, error) {
	for {
		var n int
		var err error
		if e.socket {
			n, _, err = unix.Recvfrom(e.fd, p, unix.MSG_DONTWAIT)
		} else {
			n, err = unix.Read(e.fd, p)
		}
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

func (e *streamEnd) write(p []byte) (int, error) {
	for {
		var n int
		var err error
		if e.socket {
			n, err = unix.SendmsgN(e.fd, p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		} else {
			n, err = unix.Write(e.fd, p)
		}
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// shut tells the other end of a socket that nothing more is written (SHUT_WR) or read (SHUT_RD); a pipe is told by close.
func (e *streamEnd) shut(how int) {
	if e.socket && e.sole {
		_ = unix.Shutdown(e.fd, how) // it may be disconnected
	}
}

// close is called by the goroutine that uses the descriptor, at its end. May be called more than once.
func (e *streamEnd) close() {
	e.mu.Lock()
	was := e.closed
	e.closed = true
	if !was {
		unix.Close(e.fd)
		unix.Close(e.event)
	}
	e.mu.Unlock()
	if !was && e.onClose != nil {
		e.onClose()
	}
}

// reopen opens a pipe's or FIFO's end once more, so that O_NONBLOCK concerns nobody else.
func reopen(f *os.File, flags int) (int, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s again: %w", f.Name(), err)
	}
	return fd, nil
}
