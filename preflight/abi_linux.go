package preflight

import (
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// include/uapi/linux/unix_diag.h and sock_diag.h, unchanged since v3.3.

const sockDiagByFamily = 20

type unixDiagReq struct {
	_        structs.HostLayout
	Family   uint8
	Protocol uint8
	Pad      uint16
	States   uint32
	Ino      uint32
	Show     uint32
	Cookie   [2]uint32
}

type unixDiagMsg struct {
	_      structs.HostLayout
	Family uint8
	Type   uint8
	State  uint8
	Pad    uint8
	Ino    uint32
	Cookie [2]uint32
}

const (
	udiagShowName = 0x01
	udiagShowPeer = 0x04

	unixDiagName = 0
	unixDiagPeer = 2
)

// schedGetaffinity fills words and returns the bytes that the kernel wrote (unix.SchedGetaffinity has room for 1,024 CPUs).
func schedGetaffinity(tid int, words []uint64) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_SCHED_GETAFFINITY, uintptr(tid), uintptr(len(words)*8), uintptr(unsafe.Pointer(&words[0])))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// include/uapi/linux/userfaultfd.h, as of v6.8.
type uffdioAPI struct {
	_        structs.HostLayout
	API      uint64
	Features uint64
	Ioctls   uint64
}

const (
	uffdAPI      = 0xaa
	uffdioAPICmd = 0xc018aa3f // _IOWR(0xaa, 0x3f, struct uffdio_api)
)
