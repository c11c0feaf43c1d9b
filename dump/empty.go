package dump

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// markEmpty finds the regions of a frozen task in which no page is present or swapped: reservations of address space,
// which may be terabytes large. Only those are looked at that had no page at the snapshot; a walk over nothing takes
// microseconds. A kernel without PAGEMAP_SCAN (before 6.7) leaves them all as not empty.
func markEmpty(t *Task, had map[uint64]bool) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", t.PID))
	if err != nil {
		return fmt.Errorf("look for pages of task %d: %w", t.ID, err)
	}
	defer f.Close()
	for i := range t.Regions {
		r := &t.Regions[i]
		if had[r.Start] {
			continue
		}
		any, err := anyPage(f, r.Start, r.End)
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for pages of task %d in %#x-%#x: %w", t.ID, r.Start, r.End, err)
		}
		r.Empty = !any
	}
	return nil
}

// anyPage says whether a page of the range is present or swapped (a guard page counts as swapped).
func anyPage(pagemap *os.File, start, end uint64) (bool, error) {
	vec := new(pageRegion)
	a := &pmScanArg{
		Start: start, End: end, Vec: uint64(uintptr(unsafe.Pointer(vec))), VecLen: 1, MaxPages: 1,
		CategoryAnyOf: pageIsPresent | pageIsSwapped, ReturnMask: pageIsPresent | pageIsSwapped,
	}
	a.Size = uint64(unsafe.Sizeof(*a))
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(a)))
	runtime.KeepAlive(vec)
	if errno != 0 {
		return false, errno
	}
	return n > 0, nil
}
