package detach

import (
	"encoding/binary"
	"fmt"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// include/uapi/linux/unix_diag.h and sock_diag.h
const (
	sockDiagByFamily = 20
	udiagShowRqlen   = 0x10
	unixDiagRqlen    = 4
)

type unixDiagReq struct {
	_                structs.HostLayout
	family, protocol uint8
	_                uint16
	states, ino      uint32
	show             uint32
	cookie           [2]uint32
}

const unixDiagMsgSize = 16

// acceptQueue says how many connections wait in a listener, and how many may.
func acceptQueue(sock int) (waiting, backlog int, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(sock, &st); err != nil {
		return 0, 0, fmt.Errorf("look at listener: %w", err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, 0, fmt.Errorf("open sock_diag: %w", err)
	}
	defer unix.Close(fd)
	req := unixDiagReq{family: unix.AF_UNIX, states: ^uint32(0), ino: uint32(st.Ino), show: udiagShowRqlen, cookie: [2]uint32{^uint32(0), ^uint32(0)}}
	ne := binary.NativeEndian
	buf := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+int(unsafe.Sizeof(req)))
	ne.PutUint32(buf, uint32(cap(buf)))
	ne.PutUint16(buf[4:], sockDiagByFamily)
	ne.PutUint16(buf[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(fd, append(buf, bytesOf(&req)...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, 0, fmt.Errorf("ask unix_diag: %w", err)
	}
	in := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, in, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("read unix_diag: %w", err)
	}
	const head = unix.SizeofNlMsghdr
	if n >= head+4 && ne.Uint16(in[4:]) == unix.NLMSG_ERROR {
		return 0, 0, fmt.Errorf("ask unix_diag (is the module there, and is the tree in this network namespace?): %w", unix.Errno(-int32(ne.Uint32(in[head:]))))
	}
	for a := in[min(n, head+unixDiagMsgSize):n]; len(a) >= 4; {
		size := int(ne.Uint16(a))
		if size < 4 || size > len(a) {
			break
		}
		if ne.Uint16(a[2:]) == unixDiagRqlen && size >= 12 {
			return int(ne.Uint32(a[4:])), int(ne.Uint32(a[8:])), nil
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return 0, 0, fmt.Errorf("read unix_diag: %w", unix.EPROTO)
}
