package wire

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// threaded is a TCP connection that the runtime's poller does not know: reads and writes wait in the kernel, in the thread
// that calls. In the poller each arrival wakes one more thread, and one of ordinary priority has to pass it on. There are
// no deadlines; TCP_USER_TIMEOUT (NoticeSilence) ends writes to a peer that is gone.
type threaded struct {
	f             *os.File
	local, remote net.Addr
	now           net.Buffers // the writer's
}

// newThreaded takes the place of nc, which it closes.
func newThreaded(nc *net.TCPConn) (*threaded, error) {
	rc, err := nc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var ferr error
	if err := rc.Control(func(was uintptr) { fd, ferr = unix.FcntlInt(was, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, err
	}
	if ferr != nil {
		return nil, os.NewSyscallError("dup socket", ferr)
	}
	t := &threaded{local: nc.LocalAddr(), remote: nc.RemoteAddr()}
	_ = nc.Close() // out of the poller
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("make socket blocking", err)
	}
	t.f = os.NewFile(uintptr(fd), "connection") // what blocks is not given to the poller
	return t, nil
}

// maxCall bounds what one system call copies: a kernel that is not preempted inside of one (CONFIG_PREEMPT_NONE) lets a thread that has got
// its page wait until it returns, and a megabyte takes a quarter of a millisecond.
const maxCall = 128 << 10

func (t *threaded) Read(b []byte) (int, error) { return t.f.Read(b[:min(len(b), maxCall)]) }

func (t *threaded) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = t.f.Write(b[n:min(len(b), n+maxCall)])
		n += k
	}
	return n, err
}

// writev writes the parts, which it uses up, in as few system calls as the kernel allows.
func (t *threaded) writev(parts net.Buffers) error {
	rc, err := t.f.SyscallConn()
	if err != nil {
		return err
	}
	for len(parts) > 0 {
		n := 0
		var werr error
		now := t.some(parts)
		err := rc.Write(func(fd uintptr) bool {
			for {
				if n, werr = unix.Writev(int(fd), now); werr != unix.EINTR {
					return true
				}
			}
		})
		if err == nil {
			err = werr
		}
		if err != nil {
			return os.NewSyscallError("writev", err)
		}
		for len(parts) > 0 && n >= len(parts[0]) {
			n -= len(parts[0])
			parts = parts[1:]
		}
		if n > 0 {
			parts[0] = parts[0][n:]
		}
	}
	return nil
}

// some are the first parts, as much as goes into one call.
func (t *threaded) some(parts net.Buffers) net.Buffers {
	t.now = t.now[:0]
	for left := maxCall; left > 0 && len(parts) > 0 && len(t.now) < maxParts; parts = parts[1:] {
		p := parts[0][:min(len(parts[0]), left)]
		t.now = append(t.now, p)
		left -= len(p)
	}
	return t.now
}

// maxParts is UIO_MAXIOV.
const maxParts = 1024

// Close wakes who reads or writes; the descriptor is closed when they have left the kernel.
func (t *threaded) Close() error {
	if rc, err := t.f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) }) // the peer may have ended
	}
	return t.f.Close()
}

func (t *threaded) LocalAddr() net.Addr              { return t.local }
func (t *threaded) RemoteAddr() net.Addr             { return t.remote }
func (t *threaded) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (t *threaded) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (t *threaded) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
