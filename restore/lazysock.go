package restore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// lazySocket is what criu's restore connects to instead of its own lazy-pages daemon. On one connection come, for each
// task, its PID (int32, negative: a zombie, nothing follows) and one byte with its userfaultfd; at the end
// lazyFinished. criu waits for no answer.
type lazySocket struct {
	l   net.Listener
	add func(pid uint32, uffd *os.File) error
	wg  sync.WaitGroup

	mu    sync.Mutex
	tasks map[uint32]bool
	conns map[net.Conn]bool
	err   error
}

const (
	lazySocketName = "lazy-pages.socket"
	lazyFinished   = 0x52535446
)

// listenLazy listens in criu's work directory.
func listenLazy(work *os.File, add func(uint32, *os.File) error) (*lazySocket, error) {
	name := filepath.Join(byPID1(work), lazySocketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for criu's userfaultfds: %w", err)
	}
	s := &lazySocket{l: l, add: add, tasks: make(map[uint32]bool), conns: make(map[net.Conn]bool)}
	s.wg.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = true
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(c) })
		}
	})
	return s, nil
}

func (s *lazySocket) serve(c *net.UnixConn) {
	defer c.Close()
	if err := s.read(c); err != nil {
		s.mu.Lock()
		s.err = errors.Join(s.err, fmt.Errorf("take criu's userfaultfds: %w", err))
		s.mu.Unlock()
	}
}

func (s *lazySocket) read(c *net.UnixConn) error {
	for {
		var b [4]byte
		if _, err := io.ReadFull(c, b[:]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil // whether all came is for missing to say
			}
			return err
		}
		pid := int32(binary.NativeEndian.Uint32(b[:]))
		if pid == lazyFinished {
			return nil
		}
		if pid <= 0 {
			continue
		}
		f, err := receiveFD(c)
		if err != nil {
			return fmt.Errorf("task %d: %w", pid, err)
		}
		if err := s.add(uint32(pid), f); err != nil {
			return fmt.Errorf("task %d: %w", pid, err)
		}
		s.mu.Lock()
		s.tasks[uint32(pid)] = true
		s.mu.Unlock()
	}
}

func receiveFD(c *net.UnixConn) (*os.File, error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(b[:], oob) // MSG_CMSG_CLOEXEC is Go's own
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if n != 1 || len(msgs) != 1 {
		return nil, fmt.Errorf("no descriptor came: %w", unix.EBADF)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors came: %w", len(fds), unix.EBADF)
	}
	return os.NewFile(uintptr(fds[0]), "userfaultfd"), nil
}

// missing says what is wrong once criu has restored everything: a task whose userfaultfd did not come would read zeros.
func (s *lazySocket) missing(want []uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	for _, id := range want {
		if !s.tasks[id] {
			return fmt.Errorf("task %d: criu sent no userfaultfd for its lazy memory", id)
		}
	}
	return nil
}

// close may be called more than once.
func (s *lazySocket) close() {
	s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
