package hot

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Range is a range of addresses.
type Range struct{ Start, End uint64 }

// table is one of a page table: where it is, and the first address that it maps.
type table struct{ at, addr uint64 }

// top is how far an address is shifted to become an index of the uppermost table.
func (k *kernel) top() uint {
	if k.la57 {
		return pageBits + 4*indexBits
	}
	return pageBits + 3*indexBits
}

// walk calls f with each entry of a page that is there in the ranges, which are in order: n pages from addr on. Level after level, because what lies
// under a table can only be asked for when that has been read; a level of pages holds eight bytes for each 2 MB that the process has.
func (k *kernel) walk(pgd uint64, ranges []Range, f func(addr uint64, e entry, n int)) error {
	level := []table{{pgd, 0}}
	for shift := k.top(); ; shift -= indexBits {
		var next []table
		for b := range slices.Chunk(level, batch) {
			if err := k.tables(b, shift, ranges, &next, f); err != nil {
				return err
			}
		}
		if level = next; shift == pageBits || len(level) == 0 {
			return nil
		}
	}
}

// tables reads a batch of one level.
func (k *kernel) tables(b []table, shift uint, ranges []Range, next *[]table, f func(addr uint64, e entry, n int)) error {
	var at [batch]uint64
	for i, t := range b {
		at[i] = t.at
	}
	span := uint64(1) << shift
	return k.read(pageSize, at[:len(b)], func(i int, p []byte) {
		r := from(ranges, b[i].addr)
		for j := range uint64(entries) {
			e := entry(binary.NativeEndian.Uint64(p[8*j:]))
			if e == 0 {
				continue
			}
			addr := b[i].addr + j*span
			for r < len(ranges) && ranges[r].End <= addr {
				r++
			}
			if r == len(ranges) {
				return
			}
			if addr+span <= ranges[r].Start {
				continue
			}
			switch {
			case shift == pageBits:
				if e.there() {
					f(addr, e, 1)
				}
			case e.large():
				if span == leafSpan { // a gigabyte is hugetlbfs's
					f(addr, e, entries)
				}
			case e.table():
				*next = append(*next, table{k.base + e.physical(k.bits), addr})
			}
		}
	})
}

// from is the first range that ends behind addr.
func from(ranges []Range, addr uint64) int {
	i, _ := slices.BinarySearchFunc(ranges, addr, func(r Range, a uint64) int {
		if r.End <= a {
			return -1
		}
		return 1
	})
	return i
}

// tableOf is the page table of a process, if what the kernel has there is its address space beyond doubt.
func (k *kernel) tableOf(pid int, mem *os.File) (pgd, mm uint64, err error) {
	args, err := argStart(pid)
	if err != nil {
		return 0, 0, err
	}
	for range 3 { // the table of descriptors may have grown meanwhile
		if mm, err = k.space(mem); err != nil {
			continue
		}
		var a uint64
		if a, err = k.word(mm + uint64(k.off.args)); err != nil || a != args {
			continue
		}
		if pgd, err = k.word(mm + uint64(k.off.pgd)); err == nil && pgd>>63 == 1 && pgd%pageSize == 0 {
			return pgd, mm, nil
		}
	}
	if err == nil {
		err = unix.ESTALE
	}
	return 0, 0, fmt.Errorf("find page table of process %d: %w", pid, err)
}
