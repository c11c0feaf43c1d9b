package restore

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/lazymig/lazymig/restore/memory"
)

// checkRegistered looks whether each region of a held task is registered with a userfaultfd (VmFlags "um"): one that criu
// made but did not register would read zeros without a word.
func checkRegistered(t memory.TaskMem) error {
	regions := slices.Clone(t.Regions)
	for _, s := range t.Shared {
		regions = append(regions, memory.Region{Start: s.Start, End: s.End})
	}
	if len(regions) == 0 || memory.IsObject(t.ID) {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", t.ID))
	if err != nil {
		return fmt.Errorf("check task %d: %w", t.ID, err)
	}
	defer f.Close()
	var have []memory.Region
	var cur memory.Region
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Bytes()
		if flags, ok := strings.CutPrefix(string(line), "VmFlags:"); ok {
			if slices.Contains(strings.Fields(flags), "um") {
				have = addRegion(have, cur)
			}
			continue
		}
		if r, ok := parseRange(line); ok {
			cur = r
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("check task %d: %w", t.ID, err)
	}
	for _, r := range regions {
		if !covered(have, r) {
			return fmt.Errorf("task %d: memory %#x-%#x was restored without a userfaultfd", t.ID, r.Start, r.End)
		}
	}
	return nil
}

// parseRange reads "start-end perms …", the first line of a VMA.
func parseRange(line []byte) (memory.Region, bool) {
	var r memory.Region
	i, ok := parseHex(line, &r.Start)
	if !ok || i >= len(line) || line[i] != '-' {
		return r, false
	}
	n, ok := parseHex(line[i+1:], &r.End)
	i += 1 + n
	return r, ok && i < len(line) && line[i] == ' '
}

func parseHex(b []byte, v *uint64) (n int, ok bool) {
	for n < len(b) && n < 16 {
		c := b[n]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return n, n > 0
		}
		*v = *v<<4 | uint64(c)
		n++
	}
	return n, n > 0
}

// addRegion appends r, which lies behind all of have, or extends the last.
func addRegion(have []memory.Region, r memory.Region) []memory.Region {
	if n := len(have); n > 0 && have[n-1].End == r.Start {
		have[n-1].End = r.End
		return have
	}
	return append(have, r)
}

func covered(have []memory.Region, r memory.Region) bool {
	for _, h := range have {
		if h.Start <= r.Start && r.End <= h.End {
			return true
		}
	}
	return false
}
