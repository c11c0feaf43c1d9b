package restore

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/restore/detach"
)

const ioprioWhoProcess = 1 // include/uapi/linux/ioprio.h

// apply sets what CRIU does not. One that this host cannot have (CPUs that are not there) is told and left.
func (f Fixup) apply() error {
	var errs []error
	if len(f.Affinity) > 0 {
		var set unix.CPUSet
		for i, w := range f.Affinity {
			for b := range 64 {
				if w&(1<<b) != 0 {
					set.Set(64*i + b)
				}
			}
		}
		if err := unix.SchedSetaffinity(int(f.TID), &set); err != nil {
			errs = append(errs, fmt.Errorf("set CPU affinity of thread %d: %w", f.TID, err))
		}
	}
	if f.TimerSlackNS > 0 {
		name := fmt.Sprintf("/proc/%d/timerslack_ns", f.TID)
		if err := os.WriteFile(name, []byte(strconv.FormatUint(f.TimerSlackNS, 10)), 0); err != nil {
			errs = append(errs, fmt.Errorf("set timer slack of thread %d: %w", f.TID, err))
		}
	}
	if f.IOPrio > 0 {
		if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(f.TID), uintptr(f.IOPrio)); errno != 0 {
			errs = append(errs, fmt.Errorf("set I/O priority of thread %d: %w", f.TID, errno))
		}
	}
	return errors.Join(errs...)
}

// merge lets the process ask for KSM, as only it can.
func (f Fixup) merge() error {
	if !f.KSM {
		return nil
	}
	_, err := detach.Call(int(f.TID), unix.SYS_PRCTL, unix.PR_SET_MEMORY_MERGE, 1, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("set PR_SET_MEMORY_MERGE, which it had: %w", err)
	}
	return nil
}
