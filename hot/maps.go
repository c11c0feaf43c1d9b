package hot

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mappings lists what of a process may be restored lazily: anonymous memory, private or shared, and memfds. hugetlb is not in the list: its bits are not cleared.
func mappings(pid int) (out []Range, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, fmt.Errorf("read maps of process %d: %w", pid, err)
	}
	for line := range bytes.Lines(b) {
		r, ok, err := parseMapping(string(line))
		if err != nil {
			return nil, fmt.Errorf("read maps of process %d: %w", pid, err)
		}
		if !ok {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End == r.Start {
			out[n-1].End = r.End
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

// parseMapping reads a line of maps or the head of a mapping in smaps.
func parseMapping(line string) (r Range, lazy bool, err error) {
	f := strings.Fields(line) // 7f0000000000-7f0000001000 rw-p 00000000 00:00 0      [heap]
	bad := fmt.Errorf("line %q: %w", line, unix.EINVAL)
	if len(f) < 5 || len(f[1]) != 4 {
		return r, false, bad
	}
	lo, hi, _ := strings.Cut(f[0], "-")
	if r.Start, err = strconv.ParseUint(lo, 16, 64); err != nil {
		return r, false, bad
	}
	if r.End, err = strconv.ParseUint(hi, 16, 64); err != nil || r.End <= r.Start {
		return r, false, bad
	}
	name := ""
	if len(f) > 5 {
		name = f[5]
	}
	anonymous := f[4] == "0" && (name == "" || name == "[heap]" || strings.HasPrefix(name, "[anon:") || strings.HasPrefix(name, "[anon_shmem:"))
	shared := f[1][3] == 's' && (strings.HasPrefix(name, "/memfd:") || strings.HasPrefix(name, "/dev/zero"))
	return r, anonymous || shared, nil
}

// argStart is where the arguments of a process lie: field 48 of its stat.
func argStart(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	f := strings.Fields(rest) // from field 3 on
	if len(f) < 46 {
		return 0, fmt.Errorf("read stat of process %d: %d fields: %w", pid, len(f), unix.EINVAL)
	}
	return strconv.ParseUint(f[45], 10, 64)
}
