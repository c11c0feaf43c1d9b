package pagesrv

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// Between 512 and 1,024 regions the kernel fills its own buffer once and comes to the end all the same.
func TestScanManyRegions(t *testing.T) {
	kerneltest.Need(t, kerneltest.PagemapScan)
	const pages = 4096
	m, err := unix.Mmap(-1, 0, pages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(m) }()
	if err := unix.Madvise(m, unix.MADV_NOHUGEPAGE); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	start := uint64(uintptr(unsafe.Pointer(&m[0])))
	touched := 0
	for _, regions := range []int{511, 512, 513, 750, 1023, 1024, 1025, 1500} {
		for ; touched < regions; touched++ {
			m[2*touched*PageSize] = 1
		}
		at, found := start, []Range(nil)
		for at < start+pages*PageSize {
			var end uint64
			if found, end, err = scanRanges(f, at, start+pages*PageSize, 0, found); err != nil {
				t.Fatalf("%d regions: %v", regions, err)
			}
			at = end
		}
		if len(found) != regions {
			t.Fatalf("%d regions found of %d", len(found), regions)
		}
		for i, r := range found {
			if r.Start != start+uint64(2*i)*PageSize || r.End != r.Start+PageSize {
				t.Fatalf("region %d of %d is %#x-%#x", i, regions, r.Start, r.End)
			}
		}
	}
}
