package dump

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
)

// HugeSize is the size of a transparent huge page of x86-64.
const HugeSize = 2 << 20

// maxHuge bounds what is remembered of one process: the target does without the rest.
const maxHuge = 8192

// findHuge notes where a process has transparent huge pages, so that the target can make them again. It is a snapshot like the mappings, but nothing depends on it. In
// a range of huge pages the walk is over in no time.
func (s *snapshot) findHuge(pid int) error {
	if !pagemap.Probe().Scan {
		return nil
	}
	var f *os.File
	q := pagemap.Query{All: pagemap.Huge | pagemap.PfnZero, Not: pagemap.PfnZero, Return: pagemap.Huge}
	found := make([]pagemap.Region, 256)
	for i := range s.mappings {
		m := &s.mappings[i]
		if !m.huge || !m.hidable() {
			continue
		}
		if f == nil {
			var err error
			if f, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", pid)); err != nil {
				return fmt.Errorf("look for huge pages of process %d: %w", pid, err)
			}
			defer f.Close()
		}
		for at := m.start; at < m.end; {
			n, reached, err := pagemap.FD(f.Fd()).Scan(at, m.end, q, found)
			if errors.Is(err, unix.ESRCH) { // its memory is being torn down
				return nil
			}
			if err != nil {
				return fmt.Errorf("look for huge pages of process %d in %#x-%#x: %w", pid, m.start, m.end, err)
			}
			for _, r := range found[:n] {
				first := (r.Start + HugeSize - 1) / HugeSize
				if last := r.End / HugeSize; first < last && len(s.blocks) < maxHuge {
					s.blocks = append(s.blocks, HugeRange{First: first, N: last - first})
				}
			}
			at = reached
		}
	}
	return nil
}
