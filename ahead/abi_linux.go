package ahead

import (
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// include/uapi/linux/userfaultfd.h, Linux 6.7.
const (
	uffdVersion      = 0xaa
	ioctlAPI         = 0xc018aa3f // UFFDIO_API
	ioctlRegister    = 0xc020aa00 // UFFDIO_REGISTER
	modeWP           = 1 << 1     // UFFDIO_REGISTER_MODE_WP
	featWP           = 1 << 0     // UFFD_FEATURE_PAGEFAULT_FLAG_WP
	featWPUnpopulate = 1 << 13    // UFFD_FEATURE_WP_UNPOPULATED
	featWPAsync      = 1 << 15    // UFFD_FEATURE_WP_ASYNC
	features         = featWP | featWPUnpopulate | featWPAsync
	userModeOnly     = 1 // UFFD_USER_MODE_ONLY: what an unprivileged process may have; nothing ever waits for ours
)

// uffdAPI is struct uffdio_api.
type uffdAPI struct {
	_                     structs.HostLayout
	api, features, ioctls uint64
}

// uffdRegister is struct uffdio_register.
type uffdRegister struct {
	_                        structs.HostLayout
	start, len, mode, ioctls uint64
}

func ioctl(fd int, req uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

// begin is UFFDIO_API.
func begin(fd int) error {
	return ioctl(fd, ioctlAPI, unsafe.Pointer(&uffdAPI{api: uffdVersion, features: features}))
}

// register is UFFDIO_REGISTER for write protection: in the address space that the userfaultfd was made in.
func register(fd int, s span) error {
	return ioctl(fd, ioctlRegister, unsafe.Pointer(&uffdRegister{start: s.start, len: s.end - s.start, mode: modeWP}))
}
