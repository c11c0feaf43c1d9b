package pagesrv

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Present lists which pages of [start, end) a process has contents for: in memory or swapped, neither guard nor the kernel's zero page.
// Adjacent pages are one range.
func Present(pid int, start, end uint64) ([]Range, error) {
	if start%PageSize != 0 || end%PageSize != 0 || start > end || end > maxAddr {
		return nil, fmt.Errorf("scan %#x-%#x: %w", start, end, unix.EINVAL)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	scan := scanRanges
	if !probeScan().scan {
		scan = readRanges
	}
	var out []Range
	for start < end {
		if out, start, err = scan(f, start, end, 0, out); err != nil {
			return nil, fmt.Errorf("scan process %d: %w", pid, err)
		}
	}
	var entry [pagemapEntryLen]byte
	if n, err := pread(f, entry[:], 0); err != nil || n == 0 {
		return nil, fmt.Errorf("scan process %d: %w: %w", pid, ErrSourceLost, unix.ESRCH)
	}
	return out, nil
}

// Size is how many bytes the ranges have together.
func Size(rs []Range) uint64 {
	var n uint64
	for _, r := range rs {
		n += r.End - r.Start
	}
	return n
}

const scanVec = 1024

// scanRanges appends what PAGEMAP_SCAN finds in [start, end) that is not the zero page and tells how far it came.
// Guards count only if extra has pageIsGuard.
func scanRanges(f *os.File, start, end, extra uint64, out []Range) ([]Range, uint64, error) {
	vec := make([]pageRegion, scanVec)
	cats := pageIsPresent | pageIsSwapped | pageIsPfnZero | guardCategory()
	arg := pmScanArg{Start: start, End: end, CategoryAnyofMask: cats, ReturnMask: cats}
	n, err := pagemapScan(int(f.Fd()), &arg, vec)
	if err != nil {
		return out, start, err
	}
	// The kernel collects in a buffer of 512 regions, and says where that was full last, also when it came to the end after that
	// (fs/proc/task_mmu.c, do_pagemap_scan). It stops early only where the vector is full.
	if n < len(vec) {
		arg.WalkEnd = end
	} else {
		arg.WalkEnd = max(arg.WalkEnd, vec[n-1].End)
	}
	if arg.WalkEnd <= start || arg.WalkEnd > end {
		return out, start, fmt.Errorf("scan of %#x-%#x ended at %#x: %w", start, end, arg.WalkEnd, unix.EIO)
	}
	for _, v := range vec[:n] {
		if v.Categories&pageIsPfnZero != 0 || v.Categories&pageIsGuard&^extra != 0 {
			continue
		}
		out = appendRange(out, Range{v.Start, v.End})
	}
	return out, arg.WalkEnd, nil
}

// readRanges is scanRanges for kernels without PAGEMAP_SCAN; there the zero page counts as contents.
func readRanges(f *os.File, start, end, extra uint64, out []Range) ([]Range, uint64, error) {
	buf := make([]byte, 64<<10)
	end = min(end, start+uint64(len(buf)/pagemapEntryLen)*PageSize)
	buf = buf[:(end-start)/PageSize*pagemapEntryLen]
	n, err := pread(f, buf, int64(start/PageSize*pagemapEntryLen))
	if err != nil {
		return out, start, err
	}
	if n != len(buf) {
		return out, start, fmt.Errorf("pagemap has %d bytes of %d: %w", n, len(buf), unix.ESRCH)
	}
	for ; len(buf) > 0; buf, start = buf[pagemapEntryLen:], start+PageSize {
		e := binary.NativeEndian.Uint64(buf)
		if e&(pmPresent|pmSwap) == 0 || (e&pmGuard != 0 && extra&pageIsGuard == 0) {
			continue
		}
		out = appendRange(out, Range{start, start + PageSize})
	}
	return out, end, nil
}

func appendRange(out []Range, r Range) []Range {
	if n := len(out); n > 0 && out[n-1].End == r.Start {
		out[n-1].End = r.End
		return out
	}
	return append(out, r)
}
