package pagesrv

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
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
	if !pagemap.Probe().Scan {
		scan = readRanges
	}
	var out []Range
	for start < end {
		if out, start, err = scan(f, start, end, 0, out); err != nil {
			return nil, fmt.Errorf("scan process %d: %w", pid, err)
		}
	}
	var entry [pagemap.EntrySize]byte
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
// Guards count only if extra has pagemap.Guard.
func scanRanges(f *os.File, start, end, extra uint64, out []Range) ([]Range, uint64, error) {
	vec := make([]pagemap.Region, scanVec)
	cats := pagemap.Present | pagemap.Swapped | pagemap.PfnZero | guardCategory()
	n, reached, err := pagemap.FD(f.Fd()).Scan(start, end, pagemap.Query{Any: cats, Return: cats}, vec)
	if err != nil {
		return out, start, err
	}
	for _, v := range vec[:n] {
		if v.Categories&pagemap.PfnZero != 0 || v.Categories&pagemap.Guard&^extra != 0 {
			continue
		}
		out = appendRange(out, Range{v.Start, v.End})
	}
	return out, reached, nil
}

// readRanges is scanRanges for kernels without PAGEMAP_SCAN; there the zero page counts as contents.
func readRanges(f *os.File, start, end, extra uint64, out []Range) ([]Range, uint64, error) {
	buf := make([]byte, 64<<10)
	end = min(end, start+uint64(len(buf)/pagemap.EntrySize)*PageSize)
	buf = buf[:(end-start)/PageSize*pagemap.EntrySize]
	n, err := pread(f, buf, int64(start/PageSize*pagemap.EntrySize))
	if err != nil {
		return out, start, err
	}
	if n != len(buf) {
		return out, start, fmt.Errorf("pagemap has %d bytes of %d: %w", n, len(buf), unix.ESRCH)
	}
	for ; len(buf) > 0; buf, start = buf[pagemap.EntrySize:], start+PageSize {
		e := binary.NativeEndian.Uint64(buf)
		if e&(pagemap.EntryPresent|pagemap.EntrySwapped) == 0 || (e&pagemap.EntryGuard != 0 && extra&pagemap.Guard == 0) {
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
