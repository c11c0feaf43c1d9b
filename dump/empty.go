package dump

import (
	"fmt"
	"os"

	"github.com/lazymig/lazymig/internal/pagemap"
)

// markEmpty finds the regions of a frozen task in which no page is present or swapped: reservations of address space,
// which may be terabytes large. Only those are looked at that had no page at the snapshot; a walk over nothing takes
// microseconds. A kernel without PAGEMAP_SCAN (before 6.7) leaves them all as not empty.
func markEmpty(t *Task, had map[uint64]bool) error {
	if !pagemap.Probe().Scan {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", t.PID))
	if err != nil {
		return fmt.Errorf("look for pages of task %d: %w", t.ID, err)
	}
	defer f.Close()
	for i := range t.Regions {
		r := &t.Regions[i]
		if had[r.Start] {
			continue
		}
		any, err := anyPage(f, r.Start, r.End)
		if err != nil {
			return fmt.Errorf("look for pages of task %d in %#x-%#x: %w", t.ID, r.Start, r.End, err)
		}
		r.Empty = !any
	}
	return nil
}

// anyPage says whether a page of the range is present or swapped (a guard page counts as swapped).
func anyPage(f *os.File, start, end uint64) (bool, error) {
	const there = pagemap.Present | pagemap.Swapped
	n, _, err := pagemap.FD(f.Fd()).Scan(start, end, pagemap.Query{Any: there, Return: there}, make([]pagemap.Region, 1))
	return n > 0, err
}
