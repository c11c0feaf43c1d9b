package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/internal/pagemap"
	"github.com/lazymig/lazymig/lab"
)

// hugeBytes is what the largest mapping of a process has in transparent huge pages, in kB, and where it is.
func (r *rig) hugeBytes(h *lab.Host, pid int) (kb int, start, end uint64) {
	r.t.Helper()
	var size uint64
	for line := range strings.Lines(r.sh(h, fmt.Sprintf("cat /proc/%d/smaps", pid))) {
		var a, b uint64
		if n, _ := fmt.Sscanf(line, "%x-%x rw-p", &a, &b); n == 2 {
			if size = b - a; size > end-start {
				start, end = a, b
			}
		}
		if v, ok := strings.CutPrefix(line, "AnonHugePages:"); ok && size == end-start {
			kb, _ = strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return kb, start, end
}

// TestHugePages moves a process of which a half lies in transparent huge pages. The target makes them when all memory is there, nowhere else, and has made them
// before the tree is left. Nobody advises them, so that the kernel would not by itself.
func TestHugePages(t *testing.T) {
	if !pagemap.Probe().Scan {
		kerneltest.Skip(t, "no PAGEMAP_SCAN, Linux 6.7")
	}
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	p := r.checker(a, 64, 2).proc
	_, start, end := r.hugeBytes(a, p.Pid)
	first := (start + 1<<21 - 1) &^ (1<<21 - 1)
	r.eventually("huge pages on A", func() bool { // process_madvise, MADV_COLLAPSE
		return r.sh(a, fmt.Sprintf(`python3 -c '
import ctypes, os
print(ctypes.CDLL(None).syscall(440, os.pidfd_open(%d), (ctypes.c_ulong * 2)(%d, %d), 1, 25, 0))'`, p.Pid, first, (end-start)/2)) == fmt.Sprint((end-start)/2)
	})
	home, _, _ := r.hugeBytes(a, p.Pid)
	if home < 24<<10 || home > 40<<10 {
		t.Fatalf("%d kB in huge pages on A", home)
	}
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	// Not more; and a few less where the kernel has a page pinned or no huge page free just then.
	if moved, _, _ := r.hugeBytes(b, pid); moved > home || moved < home/4*3 {
		t.Errorf("%d kB in huge pages on A, %d on B", home, moved)
	}
	r.goesOn(b, root+"/srv/status")
	r.ended(b, b, pid, root+"/srv/status")
}
