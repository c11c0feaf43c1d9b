package detach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A bound AF_UNIX socket holds on to its node until it is closed, and can't be bound again. So a listener (and a datagram socket that is
// connected to nobody) is replaced by another that is bound to the same name. What has been connected through a node holds
// on to it, too, and stays as it is: two connected sockets have no use for a node any more, the name that they show is their own, and nothing of
// the file system is asked for it (net/unix/af_unix.c, Linux 6.18: path is read by SIOCUNIXFILE and unix_diag, and put when the socket goes). It only
// keeps the dead file system's structures in the kernel until it is closed. A datagram socket is found by its node as long as it lives.

// socketInfo is how to make such a socket again.
type socketInfo struct {
	typ     int
	listens bool
	backlog int
	name    string // as it was bound: may be relative
	node    object
	options []sockOption
}

type sockOption struct{ name, value int }

var keptOptions = []int{unix.SO_SNDBUF, unix.SO_RCVBUF, unix.SO_PASSCRED, unix.SO_PASSSEC, unix.SO_KEEPALIVE}

func (s *survey) lookAtSocket(d *description, pidfd int) error {
	fd, err := unix.PidfdGetfd(pidfd, d.fd, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_UNIX {
		return nil
	}
	if d.info, err = readFDInfo(d.tid, d.fd); err != nil {
		return err
	}
	if d.info.scm {
		s.stick("process %d has a socket (%d) with descriptors in it that nobody has taken", d.pid, d.fd)
	}
	node, err := unix.IoctlRetInt(fd, siocUnixFile)
	if errors.Is(err, unix.ENOENT) {
		return nil // it has no node
	}
	if err != nil {
		return fmt.Errorf("find the node of a socket: %w", err) // CAP_NET_ADMIN is needed
	}
	defer unix.Close(node)
	obj, err := s.object(fmt.Sprintf("/proc/self/fd/%d", node))
	if err != nil || obj == nil {
		return err
	}
	si := &socketInfo{node: *obj}
	d.kind, d.sock, d.obj = unixSocket, si, *obj
	what := fmt.Sprintf("process %d has a socket (%d) at %s", d.pid, d.fd, obj.path)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("name of socket: %w", err)
	}
	if u, ok := sa.(*unix.SockaddrUnix); ok {
		si.name = u.Name
	}
	if si.typ, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return fmt.Errorf("type of socket: %w", err)
	}
	acc, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("state of socket: %w", err)
	}
	si.listens = acc != 0
	if _, err := unix.Getpeername(fd); err == nil && si.typ != unix.SOCK_DGRAM {
		s.connected++
		d.obj = object{} // left alone
		return nil
	} else if err == nil {
		s.stick("%s that is connected, and takes datagrams", what)
	}
	var readable int
	if si.listens {
		if readable, si.backlog, err = acceptQueue(fd); err != nil {
			return err
		}
	} else if readable, err = unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil {
		return fmt.Errorf("bytes in socket: %w", err)
	}
	if readable > 0 {
		s.stick("%s that has not taken all that was sent to it", what)
	}
	for _, n := range keptOptions {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, n)
		if err != nil {
			return fmt.Errorf("option %d of socket: %w", n, err)
		}
		if n == unix.SO_SNDBUF || n == unix.SO_RCVBUF {
			v /= 2 // setsockopt doubles it (socket(7))
		}
		si.options = append(si.options, sockOption{n, v})
	}
	return nil
}

// makeSocket makes a socket of the same name, whose node takes the place of the old one's copy. It listens later, in its process, whose
// credentials connect(2) shows.
func (w *switching) makeSocket(d *description) (*os.File, error) {
	si := d.sock
	path, ok := w.local.Files[si.node.ino]
	if !ok {
		return nil, fmt.Errorf("node %s is not here", si.node.path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, si.typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	err = w.inRoot.do(func() error {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("look at node: %w", err)
		}
		name, dir := si.name, "/"
		if !filepath.IsAbs(name) { // it stays so: who asks for the address gets the same
			below, ok := strings.CutSuffix(path, "/"+name)
			if !ok {
				return fmt.Errorf("it was bound as %s: %w", name, unix.EXDEV)
			}
			dir = below + "/"
		}
		if err := unix.Chdir(dir); err != nil {
			return fmt.Errorf("enter directory: %w", err)
		}
		if err := unix.Unlink(path); err != nil {
			return fmt.Errorf("remove node: %w", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		if err := unix.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
			return fmt.Errorf("give node to its owner: %w", err)
		}
		return unix.Chmod(path, st.Mode&0o7777)
	})
	for _, o := range si.options {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.name, o.value)
		}
	}
	if err == nil && d.info.flags&unix.O_NONBLOCK != 0 {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make socket %s again: %w", si.node.path, err)
	}
	return f, nil
}
