package sqlite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
)

const (
	pageSize  = 4096
	chunkSize = 1 << 20
	// mostOld bounds a mapping that is searched where the kernel can't list what is there of it (before 6.7).
	mostOld = 16 << 30
)

// scan shows each word of a process's writable private memory, and the one behind it.
func scan(pid int, mem io.ReaderAt, see func(addr, w, next uint64)) error {
	vmas, err := writable(pid)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("search memory of process %d: %w", pid, err)
	}
	pm, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return fmt.Errorf("search memory of process %d: %w", pid, err)
	}
	defer pm.Close()
	s := &scanner{mem: mem, see: see, buf: make([]uint64, chunkSize/8)}
	for _, v := range vmas {
		if err := s.vma(pagemap.FD(pm.Fd()), v); err != nil {
			return fmt.Errorf("search memory of process %d: %w", pid, err)
		}
	}
	return nil
}

type scanner struct {
	mem  io.ReaderAt
	see  func(addr, w, next uint64)
	buf  []uint64
	last uint64 // word before
	end  uint64 // where it ended; 0: none
}

// vma reads what is there of a mapping. What can't be read holds no record.
func (s *scanner) vma(pm pagemap.FD, v vma) error {
	if !pagemap.Probe().Scan {
		if v.end-v.start <= mostOld {
			s.span(v.start, v.end)
		}
		return nil
	}
	const there = pagemap.Present | pagemap.Swapped
	found := make([]pagemap.Region, 256)
	for at := v.start; at < v.end; {
		n, reached, err := pm.Scan(at, v.end, pagemap.Query{Any: there, Return: there, Not: 0}, found)
		if errors.Is(err, unix.ESRCH) {
			return nil // it has ended
		}
		if err != nil {
			return err
		}
		for _, r := range found[:n] {
			s.span(r.Start, r.End)
		}
		at = reached
	}
	return nil
}

// span reads adjacent pages.
func (s *scanner) span(start, end uint64) {
	for at := start; at < end; {
		n := min(end-at, chunkSize)
		b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s.buf))), n)
		got, err := s.mem.ReadAt(b, int64(at))
		if words := s.buf[:got/8]; len(words) > 0 {
			if s.end == at {
				s.see(at-8, s.last, words[0])
			}
			for i := range len(words) - 1 {
				s.see(at+uint64(i)*8, words[i], words[i+1])
			}
			s.last, s.end = words[len(words)-1], at+uint64(len(words))*8
		}
		if err != nil {
			at += max(uint64(got)&^(pageSize-1), pageSize) // a guard, or poison
			continue
		}
		at += n
	}
}
