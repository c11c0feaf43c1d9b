package detach

import (
	"fmt"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// include/uapi/linux/kcmp.h
const (
	kcmpFile  = 0
	kcmpVM    = 1
	kcmpFiles = 2
	kcmpFS    = 3
	kcmpEpoll = 7 // KCMP_EPOLL_TFD
)

// include/uapi/linux/ptrace.h, what x/sys lacks.
const (
	ptraceEventStop = 128
	suspendSeccomp  = 1 << 21 // PTRACE_O_SUSPEND_SECCOMP
	siKernel        = 0x80    // si_code of int3
)

const siocUnixFile = 0x89e0 // SIOCUNIXFILE, include/uapi/linux/un.h

// kcmp says whether two tasks share an object.
func kcmp(a, b, kind int, i, j uint64) (bool, error) {
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), uintptr(kind), uintptr(i), uintptr(j), 0)
	if errno != 0 {
		return false, fmt.Errorf("kcmp: %w", errno)
	}
	return r == 0, nil
}

// epollSlot is struct kcmp_epoll_slot, include/uapi/linux/kcmp.h.
type epollSlot struct {
	_               structs.HostLayout
	efd, tfd, index uint32
}

// watches says whether a task's descriptor is the one that its epoll descriptor waits for under this number.
func watches(tid, epoll, fd int) bool {
	slot := &epollSlot{efd: uint32(epoll), tfd: uint32(fd)}
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(tid), uintptr(tid), kcmpEpoll, uintptr(fd), uintptr(unsafe.Pointer(slot)), 0)
	return errno == 0 && r == 0
}

// mmMap is struct prctl_mm_map, include/uapi/linux/prctl.h.
type mmMap struct {
	_                                                                 structs.HostLayout
	startCode, endCode, startData, endData, startBrk, brk, startStack uint64
	argStart, argEnd, envStart, envEnd, auxv                          uint64
	auxvSize, exeFD                                                   uint32
}

// siginfo is siginfo_t, opaque but for its beginning.
type siginfo struct {
	_     structs.HostLayout
	signo int32
	errno int32
	code  int32
	_     [116]byte
}

func ptrace(req, tid int, addr, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func getSigmask(tid int) (mask uint64, err error) {
	err = ptrace(unix.PTRACE_GETSIGMASK, tid, 8, uintptr(unsafe.Pointer(&mask)))
	return mask, err
}

func setSigmask(tid int, mask uint64) error {
	return ptrace(unix.PTRACE_SETSIGMASK, tid, 8, uintptr(unsafe.Pointer(&mask)))
}

func getSiginfo(tid int) (si siginfo, err error) {
	err = ptrace(unix.PTRACE_GETSIGINFO, tid, 0, uintptr(unsafe.Pointer(&si)))
	return si, err
}

func setSiginfo(tid int, si *siginfo) error {
	return ptrace(unix.PTRACE_SETSIGINFO, tid, 0, uintptr(unsafe.Pointer(si)))
}

func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }
