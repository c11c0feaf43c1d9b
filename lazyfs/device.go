package lazyfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// device is /dev/fuse, read by one goroutine and written by many.
type device struct {
	fd   int
	stop <-chan struct{}

	mu     sync.Mutex
	file   *os.File // once mounted
	raw    syscall.RawConn
	closed bool
}

// errUnmounted says that the file system is gone: all its mounts, or its connection was aborted.
var errUnmounted = errors.New("file system is no longer mounted")

// waitMounted waits until somebody has mounted the descriptor. The kernel has no event for that: reads say EPERM until
// then. The first request, which is INIT, is read into b.
func (d *device) waitMounted(b []byte) (int, error) {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for {
		d.mu.Lock() // else close could give the number to another file in between
		n, err := 0, error(unix.EPERM)
		if !d.closed {
			n, err = unix.Read(d.fd, b)
		}
		d.mu.Unlock()
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR): // EAGAIN: mounted, INIT comes at once
		case errors.Is(err, unix.ENODEV):
			return 0, errUnmounted
		default:
			return 0, fmt.Errorf("read /dev/fuse: %w", err)
		}
		select {
		case <-d.stop:
			return 0, os.ErrClosed
		case <-t.C:
		}
	}
}

// register hands the descriptor to the runtime's poller, so that a blocked read can be ended. Before the mount that
// would never wake up. Whether reads block is a flag of the open file, which other processes share (and Go's
// File.Fd sets it back): one of our own, cloned from theirs, takes its place. The mount tests would hang without.
func (d *device) register() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	if fd, err := cloneFuse(d.fd); err == nil {
		_ = unix.Close(d.fd)
		d.fd = fd
	} else if err := unix.SetNonblock(d.fd, true); err != nil { // no /dev/fuse to open here
		return fmt.Errorf("set /dev/fuse non-blocking: %w", err)
	}
	return d.pollLocked()
}

// adopt is register for the descriptor of a daemon before this one.
func (d *device) adopt() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	return d.pollLocked()
}

func (d *device) pollLocked() error {
	f := os.NewFile(uintptr(d.fd), "/dev/fuse")
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("poll /dev/fuse: %w", err)
	}
	d.file, d.raw = f, raw
	return nil
}

// readahead makes the kernel read ahead that many KB where reading goes on in order: it takes 128 else, which is one
// round trip each. The number of the connection, which names it in /sys, is told by Linux 6.16 and later.
func (d *device) readahead(kb int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", d.fd))
	if err != nil {
		return fmt.Errorf("find connection: %w", err)
	}
	_, after, ok := strings.Cut(string(b), "fuse_connection:")
	n, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
	id, err := strconv.ParseUint(n, 10, 32)
	if !ok || err != nil {
		return fmt.Errorf("find connection: %w", unix.EOPNOTSUPP)
	}
	name := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", id)
	if err := os.WriteFile(name, []byte(strconv.Itoa(kb)), 0); err != nil {
		return fmt.Errorf("set readahead: %w", err)
	}
	return nil
}

// dup gives one descriptor more, of the file that requests are read from.
func (d *device) dup() (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return -1, os.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("copy /dev/fuse: %w", err)
	}
	return fd, nil
}

// tryRead reads a request if there is one: EAGAIN.
func (d *device) tryRead(b []byte) (n int, err error) {
	for {
		if c := d.raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) }); c != nil {
			return 0, os.ErrClosed
		}
		switch err {
		case unix.ENOENT, unix.EINTR: // the request was taken back
		case unix.ENODEV:
			return 0, errUnmounted
		default:
			return n, err
		}
	}
}

// read reads the next request.
func (d *device) read(b []byte) (int, error) {
	for {
		n, err := d.file.Read(b)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR): // the request was taken back
			continue
		case errors.Is(err, unix.ENODEV):
			return 0, errUnmounted
		case errors.Is(err, os.ErrClosed):
			return 0, err
		}
		// The runtime's poller has an error of its own where the connection has ended meanwhile: ask the kernel.
		var e error
		if c := d.raw.Control(func(fd uintptr) { n, e = unix.Read(int(fd), b) }); c != nil {
			return 0, os.ErrClosed
		}
		switch e {
		case nil:
			return n, nil
		case unix.ENOENT, unix.EINTR:
			continue
		case unix.ENODEV:
			return 0, errUnmounted
		}
		return 0, err
	}
}

// write answers a request or sends a notification. It never blocks.
func (d *device) write(b []byte) (err error) {
	d.mu.Lock()
	raw := d.raw
	if raw == nil { // the answer to INIT
		defer d.mu.Unlock()
		if d.closed {
			return os.ErrClosed
		}
		_, err := unix.Write(d.fd, b)
		return err
	}
	d.mu.Unlock()
	if e := raw.Control(func(fd uintptr) {
		for {
			if _, err = unix.Write(int(fd), b); err != unix.EINTR {
				return
			}
		}
	}); e != nil {
		return e
	}
	return err
}

// close gives the descriptor up; the kernel aborts the connection if nobody else holds it. A blocked read ends.
func (d *device) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.closed = true
	if d.file != nil {
		_ = d.file.Close()
		return
	}
	_ = unix.Close(d.fd)
}

// Notifications of linux/fuse.h: FUSE_NOTIFY_INVAL_INODE and, since v6.9, FUSE_NOTIFY_RESEND.
const (
	notifyInvalInode = 2
	notifyResend     = 7
)

// Resend makes the kernel send all requests again that were read from a mounted /dev/fuse and not answered. Until somebody reads them, who
// waits can be killed.
func Resend(fd int) error {
	_, err := unix.Write(fd, resendMessage())
	if err != nil {
		return fmt.Errorf("ask kernel for unanswered requests: %w", err)
	}
	return nil
}

func resendMessage() []byte {
	b := make([]byte, 16)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], notifyResend)
	return b
}

func (d *device) resend() error {
	err := d.write(resendMessage())
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) { // EPERM: not connected any more
		return errUnmounted
	}
	if err != nil {
		return fmt.Errorf("ask kernel for unanswered requests: %w", err)
	}
	return nil
}

// attrOnly instead of an offset: pages stay.
const attrOnly = -1

// invalInode makes the kernel forget what it knows of a node's attributes, and its pages from an offset on. No lock may be held.
func (d *device) invalInode(node uint64, off int64) {
	b := make([]byte, 16+24)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], notifyInvalInode)
	binary.NativeEndian.PutUint64(b[16:], node)
	binary.NativeEndian.PutUint64(b[24:], uint64(off))
	_ = d.write(b) // ENOENT: the kernel does not know it
}
