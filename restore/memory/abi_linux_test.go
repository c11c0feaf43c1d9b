package memory

import (
	"testing"
	"unsafe"
)

// TestABI holds sizes and request numbers against _IOWR of the kernel's headers.
func TestABI(t *testing.T) {
	iowr := func(dir, nr, size uintptr) uintptr { return dir<<30 | size<<16 | 0xaa<<8 | nr }
	for _, c := range []struct {
		name              string
		size, want        uintptr
		request, expected uintptr
	}{
		{"uffd_msg", unsafe.Sizeof(uffdMsg{}), 32, 0, 0},
		{"uffdio_range", unsafe.Sizeof(uffdRange{}), 16, ioctlWake, iowr(2, 2, 16)},
		{"uffdio_copy", unsafe.Sizeof(uffdCopy{}), 40, ioctlCopy, iowr(3, 3, 40)},
		{"uffdio_zeropage", unsafe.Sizeof(uffdFill{}), 32, ioctlZeropage, iowr(3, 4, 32)},
		{"uffdio_poison", unsafe.Sizeof(uffdFill{}), 32, ioctlPoison, iowr(3, 8, 32)},
	} {
		if c.size != c.want || c.request != c.expected {
			t.Errorf("%s: size %d, not %d; request %#x, not %#x", c.name, c.size, c.want, c.request, c.expected)
		}
	}
	if o := unsafe.Offsetof(uffdMsg{}.arg); o != 8 {
		t.Errorf("arg of uffd_msg at %d", o)
	}
}
