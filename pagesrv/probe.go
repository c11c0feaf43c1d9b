package pagesrv

import (
	"encoding/binary"
	"os"
	"syscall"

	"github.com/lazymig/lazymig/internal/pagemap"
)

func guardCategory() uint64 {
	if pagemap.Probe().Guard {
		return pagemap.Guard
	}
	return 0
}

// diagnose tells what a page is that neither way could read, from its pagemap entry: poison, a guard
// (kernels 6.13 and 6.14 have guards, but no category for them), or an error.
func (f *taskFiles) diagnose(addr uint64, errno syscall.Errno) (Kind, syscall.Errno) {
	var b [pagemap.EntrySize]byte
	if n, err := pread(f.pagemap, b[:], int64(addr/PageSize*pagemap.EntrySize)); err != nil || n != len(b) {
		return KindError, errno
	}
	e := binary.NativeEndian.Uint64(b[:])
	if e&pagemap.EntrySwapped == 0 {
		return KindError, errno
	}
	frame := e & pagemap.EntryFrame
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
