package fdpass

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A process that outlives the one that has started it is found by a socket in a directory that only root may enter. Bind makes the socket, Listen takes connections
// there, in the process that is to be found, and Reach is the way of whoever comes later. Addresses go through the directory's descriptor: a path may be
// longer than one holds (108 bytes).

// Bind makes a socket with a name in dir, which does not listen yet.
func Bind(dir, name string) (*os.File, error) {
	f, addr, done, err := seqpacket(dir, name)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := unix.Bind(int(f.Fd()), addr); err != nil {
		f.Close()
		return nil, fmt.Errorf("bind %s in %s: %w", name, dir, err)
	}
	return f, nil
}

// Reach connects to the process that listens there and tells its PID. It must be root's.
func Reach(dir, name string) (*Socket, int, error) {
	f, addr, done, err := seqpacket(dir, name)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	var cred *unix.Ucred
	if err = unix.Connect(int(f.Fd()), addr); err == nil {
		cred, err = rootPeer(f)
	}
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("reach %s in %s: %w", name, dir, err)
	}
	s, err := New(f)
	return s, int(cred.Pid), err
}

func seqpacket(dir, name string) (f *os.File, addr *unix.SockaddrUnix, done func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open directory of socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		d.Close()
		return nil, nil, nil, fmt.Errorf("make socket: %w", err)
	}
	return os.NewFile(uintptr(fd), name), &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)}, func() { d.Close() }, nil
}

// rootPeer are the credentials of the process that called listen(2) or connect(2) (unix(7), SO_PEERCRED).
func rootPeer(f *os.File) (*unix.Ucred, error) {
	cred, err := unix.GetsockoptUcred(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, err
	}
	if cred.Uid != 0 {
		return nil, fmt.Errorf("user %d is not root: %w", cred.Uid, unix.EPERM)
	}
	return cred, nil
}

const acceptPause = 100 * time.Millisecond

// Listen takes root's connections on a socket that Bind has made, as long as this process lives; f is closed.
func Listen(f *os.File, take func(*Socket), failed func(error)) error {
	err := unix.Listen(int(f.Fd()), 4)
	var l net.Listener
	if err == nil {
		l, err = net.FileListener(f)
	}
	f.Close()
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	go func() { // ends with the process
		for {
			conn, err := l.Accept()
			if err != nil {
				failed(fmt.Errorf("accept: %w", err))
				time.Sleep(acceptPause) //nolint:forbidigo // out of descriptors: some may be closed
				continue
			}
			s, err := accepted(conn.(*net.UnixConn))
			if err != nil {
				failed(fmt.Errorf("accept: %w", err))
				continue
			}
			take(s)
		}
	}()
	return nil
}

func accepted(conn *net.UnixConn) (*Socket, error) {
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		return nil, err
	}
	if _, err := rootPeer(f); err != nil {
		f.Close()
		return nil, err
	}
	return New(f)
}
