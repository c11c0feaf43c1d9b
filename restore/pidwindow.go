package restore

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// The guardian's runtime threads, criu and its probes take PIDs of the capsule's namespace before the tree's tasks are
// restored with theirs. Stage 1 sets ns_last_pid to a base and executes itself again, so that everything which starts
// afterwards lies in a window above the base that holds none of the tree's.
const (
	windowSize   = 4096
	windowLeast  = 512 // criu's probes and the runtime's threads are some dozens
	firstFreePID = 300 // below, the kernel allocates only before the first wrap (RESERVED_PIDS)
	maxTreeTasks = 1 << 20
	usualPIDMax  = 32768 // PID_MAX_DEFAULT
)

// ErrPIDs says that the tree's PIDs cannot be had here.
var ErrPIDs = errors.New("the tree's PIDs cannot be had on this host")

// pidWindow finds the base: no number of pids lies in (base, base+windowLeast]. pids holds process, thread, session and
// process group IDs of the tree.
//
// Until it is frozen the tree forks on, and gets the next higher numbers: so the window lies at the upper end of the widest
// gap. And low, if it can be: what the tree forks here lies above the window, and may have to fit another host's limit later.
func pidWindow(pids []int32, pidMax int) (base int, err error) {
	if len(pids) > maxTreeTasks {
		return 0, fmt.Errorf("%w: %d of them", ErrPIDs, len(pids))
	}
	sorted := slices.Clone(pids)
	slices.Sort(sorted)
	for _, p := range sorted {
		switch {
		case p == 1:
			return 0, fmt.Errorf("%w: the tree holds PID 1, which is the guardian's", ErrPIDs)
		case p < 1:
			return 0, fmt.Errorf("%w: PID %d", ErrPIDs, p)
		case int(p) >= pidMax:
			return 0, fmt.Errorf("%w: PID %d is above kernel.pid_max; remedy: sysctl -w kernel.pid_max=4194304", ErrPIDs, p)
		}
	}
	base, size := widestGap(sorted, min(pidMax, usualPIDMax))
	if size < 2*windowSize {
		base, size = widestGap(sorted, pidMax)
	}
	if size < windowLeast {
		return 0, fmt.Errorf("%w: no %d free numbers in a row; remedy: sysctl -w kernel.pid_max=4194304", ErrPIDs, windowLeast)
	}
	return base + max(0, size-windowSize), nil
}

// widestGap finds the most numbers in a row below limit that sorted does not have: those from base+1 on.
func widestGap(sorted []int32, limit int) (base, size int) {
	last := firstFreePID
	for _, p := range append(slices.Clip(sorted), int32(limit)) {
		next := min(int(p), limit)
		if n := next - 1 - last; n > size {
			base, size = last, n
		}
		last = max(last, next)
	}
	return base, size
}

// pidMax is the limit of the PID namespace that /proc belongs to (before Linux 6.14: of all).
func pidMax() (int, error) {
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return 0, fmt.Errorf("read limit of PIDs: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read limit of PIDs: %w", err)
	}
	return n, nil
}
