package hot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Page tables hold physical addresses. Where the kernel has mapped physical memory is its secret (KASLR), but a multiple of a gigabyte
// (arch/x86/mm/kaslr.c), and the address of this process's own uppermost table, which lies there, is known. So the base is that address, rounded down, less some gigabytes: the
// first for which the tables lead to pages that pagemap gives the same physical address.

const (
	gigabyte = 1 << 30
	farthest = 1 << 14 // gigabytes of physical memory

	witnesses = 8 // pages that are looked for
	apart     = 3 * leafSpan
)

var errNotFound = errors.New("pages of this process are not found in its page tables")

func (k *kernel) calibrate() error {
	mem, err := unix.Mmap(-1, 0, witnesses*apart, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("make pages to look for: %w", err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) { // a kernel without huge pages
		return fmt.Errorf("make pages to look for: %w", err)
	}
	start := uint64(uintptr(unsafe.Pointer(&mem[0])))
	want := map[uint64]uint64{} // physical address by address
	for i := range witnesses {
		mem[i*apart] = 1
		addr := start + uint64(i)*apart
		if want[addr], err = physical(addr); err != nil {
			return err
		}
	}
	self, err := os.Open("/proc/self/mem")
	if err != nil {
		return err
	}
	defer self.Close()
	mm, err := k.space(self)
	if err != nil {
		return err
	}
	pgd, err := k.word(mm + uint64(k.off.pgd))
	if err != nil {
		return err
	}
	if pgd%pageSize != 0 || pgd>>63 == 0 {
		return fmt.Errorf("%w: page table at %#x", errNotFound, pgd)
	}
	if k.base, err = k.findBase(pgd, start, want[start]); err != nil {
		return err
	}
	found := 0
	err = k.walk(pgd, []Range{{start, start + uint64(len(mem))}}, func(addr uint64, e entry, n int) {
		if p, ok := want[addr]; ok && n == 1 && e.there() && e.hot() && e.physical(k.bits) == p {
			found++
		}
	})
	if err == nil && found != witnesses {
		err = fmt.Errorf("%w: %d of %d", errNotFound, found, witnesses)
	}
	return err
}

// findBase tries gigabyte after gigabyte, a batch at once.
func (k *kernel) findBase(pgd, addr, want uint64) (uint64, error) {
	for g := uint64(0); g < farthest; g += batch {
		var bases, tables [batch]uint64
		for i := range bases {
			bases[i], tables[i] = pgd&^(gigabyte-1)-(g+uint64(i))*gigabyte, pgd
		}
		live := bases[:]
		at := tables[:]
		for shift := k.top(); len(live) > 0; shift -= indexBits {
			for i := range at {
				at[i] += addr >> shift % entries * 8
			}
			n := 0
			found := uint64(0)
			err := k.read(8, at, func(i int, b []byte) {
				e := entry(binary.NativeEndian.Uint64(b))
				switch {
				case shift == pageBits && e.there() && e.physical(k.bits) == want:
					found = live[i]
				case shift > pageBits && e.table():
					live[n], at[n] = live[i], live[i]+e.physical(k.bits)
					n++
				}
			})
			if err != nil || found != 0 {
				return found, err
			}
			if shift == pageBits {
				break
			}
			live, at = live[:n], at[:n]
		}
	}
	return 0, errNotFound
}

// physical asks pagemap for a page of this process.
func physical(addr uint64) (uint64, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], int64(addr/pageSize*8)); err != nil {
		return 0, fmt.Errorf("read pagemap: %w", err)
	}
	p := binary.NativeEndian.Uint64(b[:]) & (1<<55 - 1)
	if p == 0 {
		return 0, fmt.Errorf("read pagemap: no page, or no CAP_SYS_ADMIN: %w", unix.EPERM)
	}
	return p << pageBits, nil
}
