package restore

import (
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/internal/pagemap"
	"github.com/lazymig/lazymig/restore/memory"
)

// TestCollapse: a huge page is made where at least half of one is there, and nowhere else; also of a process that has lost mappings since.
func TestCollapse(t *testing.T) {
	kerneltest.Need(t, kerneltest.Root)
	if !pagemap.Probe().Scan {
		kerneltest.Skip(t, "no PAGEMAP_SCAN, Linux 6.7")
	}
	const blocks, bytes = 6, 6 * hugeSize
	p, err := unix.MmapPtr(-1, 0, nil, bytes+hugeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.MunmapPtr(p, bytes+hugeSize) })
	skip := -uintptr(p) & (hugeSize - 1)
	mem := unsafe.Slice((*byte)(unsafe.Add(p, skip)), bytes)
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil { // while it is filled
		t.Fatal(err)
	}
	touch := func(block, pages int) {
		for i := range pages {
			mem[block*hugeSize+i*4096] = byte(i) | 1
		}
	}
	touch(0, 512)
	touch(1, 100)
	sum := byte(0)
	for i := range 512 { // the page of zeros
		sum |= mem[2*hugeSize+i*4096]
	}
	touch(3, 300)
	touch(4, 512)
	if err := unix.MunmapPtr(unsafe.Pointer(&mem[4*hugeSize+8192]), 4096); err != nil {
		t.Fatal(err)
	}
	touch(5, 512)
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	first := uint64(uintptr(unsafe.Pointer(&mem[0]))) / hugeSize
	group, err := os.Open("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	hurry := make(chan struct{})
	close(hurry)
	c := &collapsing{log: testLog(t), group: group, hurry: hurry}
	c.all([]memory.TaskMem{{ID: 1 << 22}, {ID: uint32(os.Getpid()), Huge: [][2]uint64{{first, blocks - 1}}}}) // not of the last
	if c.made != 2 || c.failed != 1 {
		t.Errorf("%d made, %d not", c.made, c.failed)
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := make([]pagemap.Region, 16)
	n, _, err := pagemap.FD(f.Fd()).Scan(first*hugeSize, (first+blocks)*hugeSize, pagemap.Query{All: pagemap.Huge, Return: pagemap.Huge}, found)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range found[:n] {
		got = append(got, fmt.Sprint(r.Start/hugeSize-first, "-", r.End/hugeSize-first))
	}
	if fmt.Sprint(got) != "[0-1 3-4]" {
		t.Errorf("huge pages: %v", got)
	}
	if mem[299*4096+3*hugeSize] != byte(299&255)|1 || mem[300*4096+3*hugeSize] != 0 || sum != 0 {
		t.Error("contents have changed")
	}
}
