package migrate

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sink passes what the tree writes to a file or to journald.
type sink struct {
	link string // of the tree's end
	end  *streamEnd
	to   sinkFile
	log  *slog.Logger

	mu      sync.Mutex
	stopped bool
	ended   bool
	pieces  sync.Mutex // held while a piece is read and passed on
}

// sinkFile is an os.File or a connection.
type sinkFile interface {
	io.WriteCloser
	syscall.Conn
}

func (s *sink) run() {
	defer s.close()
	p := make([]byte, streamPiece)
	for {
		s.mu.Lock()
		stopped := s.stopped
		s.mu.Unlock()
		if stopped {
			return
		}
		ev, err := s.end.wait(unix.POLLIN)
		if err == nil && ev == 0 {
			continue
		}
		if err != nil || !s.pass(p) {
			return
		}
	}
}

// pass passes a piece on; false: it was the last.
func (s *sink) pass(p []byte) bool {
	s.pieces.Lock()
	defer s.pieces.Unlock()
	if s.over() {
		return false
	}
	n, err := s.end.read(p)
	if errors.Is(err, unix.EAGAIN) {
		return true
	}
	if err != nil || n == 0 {
		return false
	}
	if _, err := s.to.Write(p[:n]); err != nil {
		s.log.Warn("pass on what the tree writes", "err", err)
		return false
	}
	return true
}

func (s *sink) close() {
	s.pieces.Lock()
	defer s.pieces.Unlock()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.end.close()
}

func (s *sink) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended || s.stopped
}

// file is a copy of what takes the place of the tree's end when lazymig goes; nil: that has ended.
func (s *sink) file() (f *os.File, err error) {
	if s.over() {
		return nil, nil
	}
	c, err := s.to.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := c.Control(func(fd uintptr) {
		var n int
		if n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			f = os.NewFile(uintptr(n), s.link)
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("copy where a stream goes: %w", err)
	}
	return f, nil
}

// empty passes on all that is there. The tree is stopped: nothing comes meanwhile.
func (s *sink) empty(end time.Time) error {
	p := make([]byte, streamPiece)
	for {
		ev, err := s.end.look()
		switch {
		case err != nil:
			return fmt.Errorf("a standard stream has ended: %w", err)
		case ev&unix.POLLIN == 0: // and who has read a piece before has passed it on
			s.pieces.Lock()
			defer s.pieces.Unlock()
			return nil
		case time.Now().After(end):
			return errors.New("what the tree has written to a standard stream is not taken in time")
		case !s.pass(p):
			return errors.New("a standard stream has ended")
		}
	}
}

func (s *sink) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	if c, ok := s.to.(net.Conn); ok {
		_ = c.SetWriteDeadline(time.Now()) // a journald that does not read
	}
	s.end.wake()
}

func sinkTo(to, name string) (sinkFile, error) {
	switch to {
	case StdioJournal:
		return dialJournal(journalSocket, name)
	case StdioNull:
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	return os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// journalSocket is where journald takes streams (systemd.exec(5), StandardOutput=journal).
const journalSocket = "/run/systemd/journal/stdout"

// checkJournal says whether there is a journald.
func checkJournal(to string) error {
	if to != StdioJournal {
		return nil
	}
	if fi, err := os.Stat(journalSocket); err != nil || fi.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("--stdio journal: this host has no journald (%s)", journalSocket)
	}
	return nil
}

// dialJournal opens a stream; each line becomes an entry of the given identifier.
func dialJournal(path, name string) (*net.UnixConn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open stream to journald: %w", err)
	}
	// identifier, unit, priority (info), level prefixes (<N>), forward to syslog, kmsg, console (journald-stream.c)
	if _, err := fmt.Fprintf(c, "%s\n\n6\n1\n0\n0\n0\n", journalName(name)); err != nil {
		c.Close()
		return nil, fmt.Errorf("open stream to journald: %w", err)
	}
	return c, nil
}

// journalName keeps a process's name from ending the line.
func journalName(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c < ' ' || c == 0x7f {
			b[i] = '_'
		}
	}
	return string(b)
}

// given is what the tree may have in the place of its ends.
func (st *targetStdio) given() (m givenMsg, files []*os.File, err error) {
	m.Left = len(st.relay.out) + len(st.relay.in)
	for _, s := range st.sinks {
		if s.link == "" {
			m.Left++
			continue
		}
		f, ferr := s.file()
		if ferr != nil {
			m.Left++
			err = errors.Join(err, ferr)
		}
		if f != nil {
			m.Links, files = append(m.Links, s.link), append(files, f)
		}
	}
	return m, files, err
}

const emptyTime = time.Second // the tree is stopped meanwhile

// empty passes on all that the tree has written to what it may have itself.
func (st *targetStdio) empty() error {
	end := time.Now().Add(emptyTime)
	for _, s := range st.sinks {
		if s.link == "" || s.over() {
			continue
		}
		if err := s.empty(end); err != nil {
			return err
		}
	}
	return nil
}
