package memory

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// vma is a mapping with its VmFlags.
type vma struct {
	start, end uint64
	flags      string // " rd wr mr mw me ac um "
}

func (v vma) has(flag string) bool { return strings.Contains(v.flags, " "+flag+" ") }

const pfExiting = 4 // include/linux/sched.h

// executes says that a process lives whose memory is gone: it has called execve(2).
func executes(proc string, pid uint32) bool {
	b, err := os.ReadFile(filepath.Join(proc, strconv.FormatUint(uint64(pid), 10), "stat"))
	if err != nil {
		return false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name may hold anything
	if len(f) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(f[6], 10, 64)
	return err == nil && flags&pfExiting == 0 && f[0] != "Z"
}

// dumpsCore says that a process is in the middle of that.
func dumpsCore(proc string, pid uint32) bool {
	b, err := os.ReadFile(filepath.Join(proc, strconv.FormatUint(uint64(pid), 10), "status"))
	return err == nil && bytes.Contains(b, []byte("\nCoreDumping:\t1\n"))
}

// readVMAs reads /proc/PID/smaps, which alone shows VmFlags. A process whose first thread has ended has an empty one;
// each thread's own shows the same mm.
func readVMAs(proc string, pid uint32) ([]vma, error) {
	base := filepath.Join(proc, strconv.FormatUint(uint64(pid), 10))
	vmas, err := parseVMAs(filepath.Join(base, "smaps"))
	if err != nil || len(vmas) > 0 {
		return vmas, err
	}
	threads, err := os.ReadDir(filepath.Join(base, "task"))
	if err != nil {
		return nil, fmt.Errorf("read threads: %w", err)
	}
	for _, t := range threads {
		if v, err := parseVMAs(filepath.Join(base, "task", t.Name(), "smaps")); err == nil && len(v) > 0 {
			return v, nil
		}
	}
	return nil, nil
}

func parseVMAs(path string) ([]vma, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read mappings: %w", err)
	}
	defer f.Close()
	var out []vma
	s := bufio.NewScanner(f)
	s.Buffer(make([]byte, 64<<10), 1<<20)
	for s.Scan() {
		line := s.Text()
		if rest, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			if len(out) > 0 {
				out[len(out)-1].flags = rest + " "
			}
			continue
		}
		// A head is START-END perms …; every other line begins with a name and a colon.
		head, _, _ := strings.Cut(line, " ")
		lo, hi, ok := strings.Cut(head, "-")
		if !ok || strings.HasSuffix(head, ":") {
			continue
		}
		start, err1 := strconv.ParseUint(lo, 16, 64)
		end, err2 := strconv.ParseUint(hi, 16, 64)
		if err1 == nil && err2 == nil {
			out = append(out, vma{start: start, end: end})
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read mappings: %w", err)
	}
	return out, nil
}
