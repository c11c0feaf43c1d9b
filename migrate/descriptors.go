package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

const unixOPath = unix.O_PATH

// descriptor is a copy of one of the tree's.
type descriptor struct {
	*os.File
	pid, fd int // where it is from
}

// copies takes copies of the descriptors of all tasks of the frozen tree that want says yes to, by pidfd_getfd(2).
func (s *Source) copies(want func(mode uint32) bool) ([]descriptor, error) {
	var all []descriptor
	var errs []error
	for _, t := range s.result.Tasks {
		got, err := copiesOf(t.PID, want)
		all = append(all, got...)
		if err != nil {
			errs = append(errs, fmt.Errorf("task %d: %w", t.PID, err))
		}
	}
	return all, errors.Join(errs...)
}

func copiesOf(pid int, want func(mode uint32) bool) ([]descriptor, error) {
	ents, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open pidfd: %w", err)
	}
	defer unix.Close(pidfd)
	var all []descriptor
	var errs []error
	for _, e := range ents {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, n), &st) != nil || !want(st.Mode) {
			continue // a kind without an inode to look at is not wanted
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			errs = append(errs, fmt.Errorf("copy descriptor %d: %w", n, err))
			continue
		}
		all = append(all, descriptor{os.NewFile(uintptr(fd), e.Name()), pid, n})
	}
	return all, errors.Join(errs...)
}

// holdFiles copies descriptors of files: locks of the tree (flock, OFD) and files without a name live on with them. POSIX locks have to be taken
// again when the tree has been killed.
func (s *Source) holdFiles() ([]*os.File, []posixLock, error) {
	all, err := s.copies(func(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFREG })
	errs := []error{err}
	var files []*os.File
	var locks []posixLock
	for _, d := range all {
		files = append(files, d.File)
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", d.pid, d.fd))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		lks, err := posixLocks(bytes.NewReader(b))
		errs = append(errs, err)
		for _, lk := range lks {
			locks = append(locks, posixLock{d.File, lk})
		}
	}
	return files, locks, errors.Join(errs...)
}

// dropSockets ends the frozen tree's TCP: connect(2) to AF_UNSPEC disconnects, a listener stops listening, so that peers get a
// reset at once instead of a kernel that goes on accepting for nobody (net/ipv4/tcp.c, tcp_disconnect).
func (s *Source) dropSockets() {
	socks, err := s.copies(func(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFSOCK })
	if err != nil {
		s.log.Warn("close TCP of the frozen tree", "err", err)
	}
	for _, f := range socks {
		fd := int(f.Fd())
		proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err == nil && proto == unix.IPPROTO_TCP {
			var sa [16]byte // AF_UNSPEC
			if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), 16); errno != 0 {
				s.log.Warn("disconnect socket of the frozen tree", "err", errno)
			}
		}
		f.Close()
	}
}
