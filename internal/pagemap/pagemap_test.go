package pagemap

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

func TestABI(t *testing.T) {
	if n := unsafe.Sizeof(scanArg{}); n != 96 {
		t.Errorf("struct pm_scan_arg has %d bytes", n)
	}
	if n := unsafe.Sizeof(Region{}); n != 24 {
		t.Errorf("struct page_region has %d bytes", n)
	}
	if want := uintptr(3<<30 | 96<<16 | 'f'<<8 | 16); request != want {
		t.Errorf("the request is %#x, not _IOWR('f', 16, 96 bytes), %#x", request, want)
	}
}

// memory maps pages and returns them, their address, and this process's pagemap.
func memory(t *testing.T, pages int) ([]byte, uint64, FD) {
	t.Helper()
	if !Probe().Scan {
		if os.Getenv("LAZYMIG_NO_SKIP") != "" {
			t.Fatal("this kernel has no PAGEMAP_SCAN")
		}
		t.Skip("this kernel has no PAGEMAP_SCAN")
	}
	m, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	if err := unix.Madvise(m, unix.MADV_NOHUGEPAGE); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return m, uint64(uintptr(unsafe.Pointer(&m[0]))), FD(f.Fd())
}

// Between 512 and 1,024 regions the kernel fills its own buffer once and comes to the end all the same.
func TestManyRegions(t *testing.T) {
	const pages = 4096
	m, start, fd := memory(t, pages)
	end := start + pages*pageSize
	touched := 0
	for _, regions := range []int{1, 511, 512, 513, 750, 1023, 1024, 1025, 1500} {
		for ; touched < regions; touched++ {
			m[2*touched*pageSize] = 1
		}
		for _, room := range []int{1024, 512, 7} {
			vec := make([]Region, room)
			var found []Region
			for at := start; at < end; {
				n, reached, err := fd.Scan(at, end, Query{Any: Present, Return: Present}, vec)
				if err != nil {
					t.Fatalf("%d regions, room for %d: %v", regions, room, err)
				}
				if n < room && reached != end {
					t.Fatalf("%d regions, room for %d: %d found up to %#x, the end is %#x", regions, room, n, reached, end)
				}
				found, at = append(found, vec[:n]...), reached
			}
			if len(found) != regions {
				t.Fatalf("%d regions found of %d, room for %d", len(found), regions, room)
			}
			for i, r := range found {
				if r.Start != start+uint64(2*i)*pageSize || r.End != r.Start+pageSize || r.Categories != Present {
					t.Fatalf("region %d of %d is %#x-%#x, categories %#x", i, regions, r.Start, r.End, r.Categories)
				}
			}
		}
	}
}

// Not turns a category round: what is neither present nor swapped.
func TestAbsent(t *testing.T) {
	m, start, fd := memory(t, 8)
	m[2*pageSize], m[3*pageSize], m[6*pageSize] = 1, 1, 1
	vec := make([]Region, 8)
	n, _, err := fd.Scan(start, start+8*pageSize, Query{All: Present | Swapped, Not: Present | Swapped, Return: Present}, vec)
	if err != nil {
		t.Fatal(err)
	}
	want := [][2]uint64{{0, 2}, {4, 6}, {7, 8}}
	if n != len(want) {
		t.Fatalf("%d regions, want %d", n, len(want))
	}
	for i, w := range want {
		if r := vec[i]; r.Start != start+w[0]*pageSize || r.End != start+w[1]*pageSize {
			t.Errorf("region %d is %#x-%#x", i, r.Start, r.End)
		}
	}
}
