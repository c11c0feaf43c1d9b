package lazyfs

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fuseDevIocClone is FUSE_DEV_IOC_CLONE, _IOR(229, 0, uint32_t), linux/fuse.h since v4.2.
const fuseDevIocClone = 0x8004e500

// cloneFuse opens /dev/fuse anew, non-blocking, for the connection of a mounted descriptor.
func cloneFuse(old int) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	n := uint32(old)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fuseDevIocClone, uintptr(unsafe.Pointer(&n))); e != 0 {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("clone /dev/fuse: %w", e)
	}
	return fd, nil
}
