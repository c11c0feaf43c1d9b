// Package fdpass sends descriptors with a message over a Unix SOCK_SEQPACKET (or datagram) socket between two
// processes of lazymig on one host. The peer is trusted: it is the same program, started by this one.
package fdpass

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// MaxMessage is the longest message; MaxFiles the most descriptors in one (SCM_MAX_FD of include/net/scm.h is 253).
const (
	MaxMessage = 128 << 10
	MaxFiles   = 64
)

// Socket is one end of a pair. Any number of goroutines may send; one receives.
type Socket struct {
	f    *os.File // non-blocking, unless inThread: the runtime's poller waits, so Close wakes a blocked Recv
	mu   sync.Mutex
	once sync.Once
	oob  []byte // the receiver's

	inThread bool         // not in the runtime's poller
	short    atomic.Int64 // times that Recv has found no descriptor free
}

// Pair makes a connected pair: one end for this process, the other as a blocking file to hand to a child.
func Pair() (*Socket, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	s, err := New(os.NewFile(uintptr(fds[0]), "fdpass"))
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return s, os.NewFile(uintptr(fds[1]), "fdpass-peer"), nil
}

// New takes over f, a SOCK_SEQPACKET socket.
func New(f *os.File) (*Socket, error) { return take(f, false) }

// NewInThread is New for a socket whose Recv and Send wait in the kernel, in the thread that calls, so that its priority
// counts. The runtime's poller does not know the socket: there, each message would wake one more thread, for nothing.
func NewInThread(f *os.File) (*Socket, error) { return take(f, true) }

func take(f *os.File, inThread bool) (*Socket, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("take over socket: %w", err)
	}
	if err := unix.SetNonblock(fd, !inThread); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("take over socket: %w", err)
	}
	// NewFile gives the poller what does not block.
	return &Socket{f: os.NewFile(uintptr(fd), "fdpass"), oob: make([]byte, unix.CmsgSpace(4*MaxFiles)), inThread: inThread}, nil
}

// Send sends one message; files stay open here.
func (s *Socket) Send(b []byte, files ...*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		c, err := f.SyscallConn()
		if err != nil {
			return fmt.Errorf("send descriptor: %w", err)
		}
		if err := c.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return fmt.Errorf("send descriptor: %w", err)
		}
	}
	return s.SendFDs(b, fds...)
}

// SendFDs is Send for descriptors that no os.File has.
func (s *Socket) SendFDs(b []byte, fds ...int) error {
	if len(b) == 0 || len(b) > MaxMessage || len(fds) > MaxFiles {
		return fmt.Errorf("send message of %d bytes with %d descriptors: %w", len(b), len(fds), unix.EMSGSIZE)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	rc, err := s.f.SyscallConn()
	if err != nil {
		return err
	}
	// A message is whole or not there, so senders need not wait for each other unless the socket is full.
	var serr error
	err = rc.Control(func(fd uintptr) {
		serr = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	})
	if err == nil && serr == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err = rc.Write(func(fd uintptr) bool {
		for {
			serr = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL)
			if serr != unix.EINTR {
				return serr != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		return fmt.Errorf("send to peer process: %w", err)
	}
	return nil
}

// Recv receives one message and its descriptors (close-on-exec), which are the caller's. The peer's end gives io.EOF-like
// length 0: ErrClosed.
//
// Where no descriptor is left for one that comes, the kernel would drop it, and with it what the peer relies on. So it is looked at first, and
// waits in the socket until there is room. Not so for a socket that waits in its thread: descriptors come there at the start only.
func (s *Socket) Recv(buf []byte) (int, []*os.File, error) {
	if s.inThread {
		n, oobn, flags, err := s.recvmsg(buf, s.oob, 0)
		if err != nil {
			return 0, nil, err
		}
		return received(n, s.oob[:oobn], flags)
	}
	for {
		n, oobn, flags, err := s.recvmsg(buf, s.oob, unix.MSG_PEEK)
		if err != nil {
			return 0, nil, err
		}
		n, files, err := received(n, s.oob[:oobn], flags)
		if errors.Is(err, errShort) {
			s.short.Add(1)
			time.Sleep(shortPause) //nolint:forbidigo // nothing tells when a descriptor is free
			continue
		}
		if errors.Is(err, ErrClosed) {
			return 0, nil, err
		}
		if _, _, _, terr := s.recvmsg(buf[:min(len(buf), 1)], nil, 0); terr != nil { // off the queue; its descriptors are here
			CloseAll(files)
			return 0, nil, terr
		}
		return n, files, err
	}
}

const shortPause = 20 * time.Millisecond

func (s *Socket) recvmsg(buf, oob []byte, how int) (n, oobn, flags int, err error) {
	rc, err := s.f.SyscallConn()
	if err != nil {
		return 0, 0, 0, err
	}
	var rerr error
	err = rc.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, rerr = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC|how)
			if rerr != unix.EINTR {
				return rerr != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = rerr
	}
	if err != nil {
		err = fmt.Errorf("receive from peer process: %w", err)
	}
	return n, oobn, flags, err
}

// errShort says that descriptors were dropped because this process may have no more.
var errShort = fmt.Errorf("receive descriptors: %w", unix.EMFILE)

// received is what recvmsg gave.
func received(n int, oob []byte, flags int) (int, []*os.File, error) {
	files, err := parse(oob)
	if err != nil {
		return 0, nil, err
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err := fmt.Errorf("receive from peer process: %w", unix.EMSGSIZE)
		if flags&unix.MSG_CTRUNC != 0 && len(files) < MaxFiles {
			err = errShort
		}
		CloseAll(files)
		return 0, nil, err
	}
	if n == 0 {
		CloseAll(files)
		return 0, nil, ErrClosed
	}
	return n, files, nil
}

// TryRecv is Recv that gives EAGAIN when there is nothing.
func (s *Socket) TryRecv(buf []byte) (int, []*os.File, error) {
	rc, err := s.f.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var n, oobn, flags int
	var rerr error
	err = rc.Control(func(fd uintptr) {
		for {
			n, oobn, flags, _, rerr = unix.Recvmsg(int(fd), buf, s.oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			if rerr != unix.EINTR {
				return
			}
		}
	})
	if err == nil {
		err = rerr
	}
	if err != nil {
		return 0, nil, fmt.Errorf("receive from peer process: %w", err)
	}
	return received(n, s.oob[:oobn], flags)
}

// FD is the descriptor, for epoll. It stays the socket's.
func (s *Socket) FD() int {
	fd := -1
	if rc, err := s.f.SyscallConn(); err == nil {
		_ = rc.Control(func(f uintptr) { fd = int(f) }) // -1 when it is closed
	}
	return fd
}

// Shutdown makes both ends see the end; the descriptor stays open.
func (s *Socket) Shutdown() {
	if rc, err := s.f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) }) // the peer may have ended
	}
}

// ErrClosed says that the peer's end is closed.
var ErrClosed = fmt.Errorf("receive from peer process: closed: %w", os.ErrClosed)

func parse(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// Number takes the descriptor out of a file that was received, so that no poller of the runtime knows it: one that does is woken for each event of the file.
func Number(f *os.File) (fd int, err error) {
	c, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("take descriptor: %w", err)
	}
	defer f.Close()
	if e := c.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) }); e != nil {
		err = e
	}
	if err != nil {
		return -1, fmt.Errorf("take descriptor: %w", err)
	}
	return fd, nil
}

// File makes a file of one more descriptor of fd's, to be sent.
func File(fd int, name string) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("copy descriptor of %s: %w", name, err)
	}
	return os.NewFile(uintptr(n), name), nil
}

// CloseAll closes what was received and is not wanted.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Close wakes a blocked Recv. May be called more than once.
func (s *Socket) Close() error {
	var err error
	s.once.Do(func() {
		if s.inThread { // nothing else wakes who is in the kernel; the descriptor is closed when they have left it
			s.Shutdown()
		}
		err = s.f.Close()
	})
	return err
}
