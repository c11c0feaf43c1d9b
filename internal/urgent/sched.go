package urgent

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	slice    = 100_000 // ns; the least that the kernel takes (6.12)
	leastPs  = 4       // see Share
	priority = 1       // of SCHED_FIFO
)

// Share makes the ordinary threads of this process, and those that they will start, share the CPU in short slices, at
// nice 0. It also gives the
// runtime some processors more than there are CPUs: a thread that comes back from the kernel needs one at once.
func Share() {
	if runtime.GOMAXPROCS(0) < leastPs {
		runtime.GOMAXPROCS(leastPs)
	}
	ents, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, e := range ents {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if a, err := unix.SchedGetAttr(tid, 0); err != nil || a.Policy != unix.SCHED_NORMAL {
			continue // of Thread, or ended
		}
		_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Runtime: slice}, 0) // before 6.12 without effect
	}
}

// Thread gives the calling goroutine a thread that runs before all ordinary ones, until end is called. Without the right to
// do so the thread stays an ordinary one.
func Thread() (end func()) {
	runtime.LockOSThread()
	was, err := unix.SchedGetAttr(0, 0)
	if err == nil {
		// Threads and processes that it starts are ordinary ones.
		a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
		err = unix.SchedSetAttr(0, &a, 0)
	}
	return func() {
		if err == nil {
			was.Size = unix.SizeofSchedAttr
			was.Flags &= unix.SCHED_FLAG_RESET_ON_FORK
			if unix.SchedSetAttr(0, was, 0) != nil {
				return // still locked: the thread ends with its goroutine
			}
		}
		runtime.UnlockOSThread()
	}
}
