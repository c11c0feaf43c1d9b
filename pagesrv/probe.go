package pagesrv

import (
	"encoding/binary"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// scanFeature says what PAGEMAP_SCAN of the running kernel can do.
type scanFeature struct {
	scan  bool // 6.7
	guard bool // 6.15
}

var probeScan = sync.OnceValue(func() scanFeature {
	var s scanFeature
	fd, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return s
	}
	defer unix.Close(fd)
	vec := make([]pageRegion, 1)
	try := func(mask uint64) bool {
		_, err := pagemapScan(fd, &pmScanArg{Start: PageSize, End: 2 * PageSize, CategoryAnyofMask: mask, ReturnMask: mask}, vec)
		return err == nil
	}
	s.scan = try(pageIsPresent)
	s.guard = try(pageIsGuard)
	return s
})

func guardCategory() uint64 {
	if probeScan().guard {
		return pageIsGuard
	}
	return 0
}

// diagnose tells what a page is that neither way could read, from its pagemap entry: poison, a guard
// (kernels 6.13 and 6.14 have guards, but no category for them), or an error.
func (f *taskFiles) diagnose(addr uint64, errno syscall.Errno) (Kind, syscall.Errno) {
	var b [pagemapEntryLen]byte
	if n, err := pread(f.pagemap, b[:], int64(addr/PageSize*pagemapEntryLen)); err != nil || n != len(b) {
		return KindError, errno
	}
	e := binary.NativeEndian.Uint64(b[:])
	if e&pmSwap == 0 {
		return KindError, errno
	}
	frame := e & pmFrameMask
	typ, offset := frame&(1<<swapTypeBits-1), frame>>swapTypeBits
	switch {
	case typ == swapTypeMarker && offset&markerPoisoned != 0:
		return KindPoison, 0
	case typ == swapTypeMarker && offset&markerGuard != 0:
		return KindGuard, 0
	case typ >= firstSpecial && typ < swapTypeMarker && framePoisoned(offset):
		return KindPoison, 0
	}
	return KindError, errno
}

func framePoisoned(frame uint64) bool {
	k, err := os.Open("/proc/kpageflags")
	if err != nil {
		return false
	}
	defer k.Close()
	var b [8]byte
	if n, err := pread(k, b[:], int64(frame*8)); err != nil || n != len(b) {
		return false
	}
	return binary.NativeEndian.Uint64(b[:])&kpfHWPoison != 0
}
