package pagesrv

import (
	"runtime"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PAGEMAP_SCAN of include/uapi/linux/fs.h (Linux 6.7; PAGE_IS_GUARD: 6.15). golang.org/x/sys/unix lacks the ioctl's use.
const (
	ioctlPagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
	pageIsPfnZero = 1 << 5
	pageIsGuard   = 1 << 8
)

// pmScanArg is struct pm_scan_arg.
type pmScanArg struct {
	_                 structs.HostLayout
	Size              uint64
	Flags             uint64
	Start             uint64
	End               uint64
	WalkEnd           uint64
	Vec               uint64
	VecLen            uint64
	MaxPages          uint64
	CategoryInverted  uint64
	CategoryMask      uint64
	CategoryAnyofMask uint64
	ReturnMask        uint64
}

// pageRegion is struct page_region.
type pageRegion struct {
	_          structs.HostLayout
	Start      uint64
	End        uint64
	Categories uint64
}

// pagemapScan does one PAGEMAP_SCAN into vec and tells how many regions it filled; arg.WalkEnd says how far it came.
func pagemapScan(fd int, arg *pmScanArg, vec []pageRegion) (int, error) {
	arg.Size = uint64(unsafe.Sizeof(*arg))
	arg.Vec = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(vec))))
	arg.VecLen = uint64(len(vec))
	var pin runtime.Pinner // the kernel writes through an address that stands in a struct as a number
	pin.Pin(unsafe.SliceData(vec))
	defer pin.Unpin()
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlPagemapScan, uintptr(unsafe.Pointer(arg)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
}

// Bits of a /proc/PID/pagemap entry, Documentation/admin-guide/mm/pagemap.rst (guard: 6.15).
const (
	pmPresent = 1 << 63
	pmSwap    = 1 << 62
	pmGuard   = 1 << 58

	pmFrameMask = 1<<55 - 1
)

// With pmSwap the frame field holds the swap type in its 5 low bits and the offset above (privileged readers only).
// The highest type is that of PTE markers, whose offset holds the marker (include/linux/swapops.h, 6.6 and later).
const (
	swapTypeBits    = 5
	swapTypeMarker  = 31
	markerPoisoned  = 1 << 1
	markerGuard     = 1 << 2
	firstSpecial    = 22      // no swap file has a type from here on, whatever the kernel was built with
	kpfHWPoison     = 1 << 19 // /proc/kpageflags, include/uapi/linux/kernel-page-flags.h
	pagemapEntryLen = 8
)
