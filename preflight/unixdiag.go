package preflight

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unixSock is what unix_diag says of an AF_UNIX socket.
type unixSock struct {
	ino, peer uint64 // peer 0: none
	typ       uint8  // unix.SOCK_STREAM …
	state     uint8  // TCP states: 1 connected, 10 listening
	name      string // abstract names begin with a zero byte
}

// unixSockets dumps all AF_UNIX sockets of the calling thread's network namespace.
func unixSockets() (map[uint64]unixSock, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	defer unix.Close(fd)
	req := unixDiagReq{Family: unix.AF_UNIX, States: ^uint32(0), Show: udiagShowName | udiagShowPeer}
	size := unix.SizeofNlMsghdr + int(unsafe.Sizeof(req))
	buf := make([]byte, size)
	ne := binary.NativeEndian
	ne.PutUint32(buf[0:], uint32(size))
	ne.PutUint16(buf[4:], sockDiagByFamily)
	ne.PutUint16(buf[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	copy(buf[unix.SizeofNlMsghdr:], unsafe.Slice((*byte)(unsafe.Pointer(&req)), unsafe.Sizeof(req)))
	if err := unix.Sendto(fd, buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask unix_diag: %w", err)
	}
	out := map[uint64]unixSock{}
	in := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, in, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read unix_diag: %w", err)
		}
		done, err := parseUnixDiag(in[:n], out)
		if err != nil || done {
			return out, err
		}
	}
}

// parseUnixDiag reads one datagram of netlink messages.
func parseUnixDiag(b []byte, out map[uint64]unixSock) (done bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(ne.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false, errors.New("parse unix_diag: bad message length")
		}
		body := b[unix.SizeofNlMsghdr:size]
		switch ne.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if e := int32(ne.Uint32(body)); e < 0 {
					return false, fmt.Errorf("ask unix_diag: %w", unix.Errno(-e))
				}
			}
			return true, nil
		case sockDiagByFamily:
			if s, ok := parseUnixSock(body); ok {
				out[s.ino] = s
			}
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return false, nil
}

func parseUnixSock(b []byte) (unixSock, bool) {
	const fixed = int(unsafe.Sizeof(unixDiagMsg{}))
	ne := binary.NativeEndian
	if len(b) < fixed {
		return unixSock{}, false
	}
	s := unixSock{typ: b[1], state: b[2], ino: uint64(ne.Uint32(b[4:]))}
	for a := b[fixed:]; len(a) >= 4; {
		size, typ := int(ne.Uint16(a)), ne.Uint16(a[2:])
		if size < 4 || size > len(a) {
			break
		}
		switch v := a[4:size]; {
		case typ == unixDiagName:
			s.name = string(v)
			if path, _, _ := strings.Cut(s.name, "\x00"); path != "" { // the kernel counts a path's zero byte in (net/unix/af_unix.c, unix_mkname_bsd)
				s.name = path
			}
		case typ == unixDiagPeer && len(v) >= 4:
			s.peer = uint64(ne.Uint32(v))
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return s, true
}

// readUnix fills in the tree's AF_UNIX sockets.
func (in *inspector) readUnix() {
	var all map[uint64]unixSock
	err := in.inNamespace("net", unix.CLONE_NEWNET, func() (err error) {
		all, err = unixSockets()
		return err
	})
	if err != nil {
		in.add(Finding{"unix-peers", Warn, in.opt.PID, "the peers of its AF_UNIX sockets are unknown", err.Error(), "load the kernel module unix_diag"})
		return
	}
	for ino, u := range all {
		if s := in.socks[ino]; s != nil {
			s.known, s.table, s.unix = true, "unix", u
			s.peerName = all[u.peer].name
		}
	}
}
