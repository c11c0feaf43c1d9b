package restore

import (
	"fmt"
	"runtime"
	"slices"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// When the guardian dies by kill -9, the OOM killer or a panic, the kernel closes its descriptors before it kills its PID
// namespace. Closing the last copy of a userfaultfd lets threads that wait for pages go on with zeros, for long enough to
// write them to a file. So a second process, the holder, shares the guardian's descriptor table (CLONE_FILES: also what is
// received or closed later). The kernel kills a PID namespace in the order of PIDs (zap_pid_ns_processes): the holder has
// the highest, so everybody else has a SIGKILL pending when its copy is closed. TestGuardianKilled shows it.

// cloneArgs is struct clone_args of include/uapi/linux/sched.h, its version of Linux 5.5 (CLONE_ARGS_SIZE_VER1).
type cloneArgs struct {
	_          structs.HostLayout
	flags      uint64
	pidfd      uint64
	childTID   uint64
	parentTID  uint64
	exitSignal uint64
	stack      uint64
	stackSize  uint64
	tls        uint64
	setTID     uint64
	setTIDSize uint64
}

// holderPID is the highest PID of the namespace that the tree does not have.
func holderPID(pids []int32, pidMax int) int32 {
	pid := int32(pidMax - 1)
	for slices.Contains(pids, pid) {
		pid--
	}
	return pid
}

// startHolder starts the holder. Its exit signal is none, so that plain waits do not see it.
func startHolder(pid int32) error {
	runtime.LockOSThread() // the signal mask is the thread's
	defer runtime.UnlockOSThread()
	args := &cloneArgs{flags: unix.CLONE_FILES, setTID: uint64(uintptr(unsafe.Pointer(&pid))), setTIDSize: 1}
	var all, old [1]uint64
	all[0] = ^uint64(0)
	if _, errno := cloneHolder(args, &all, &old); errno != 0 {
		return fmt.Errorf("start holder of descriptors: %w", errno)
	}
	runtime.KeepAlive(&pid)
	return nil
}

const sigSetmask = 2 // SIG_SETMASK of include/uapi/asm-generic/signal-defs.h

// cloneHolder forks. The child is a copy with this thread only: nothing of Go's runtime may run in it, so it does raw
// system calls on this frame for ever, all signals blocked (what a tree sends to everybody would run Go's handler).
//
//go:nosplit
//go:norace
func cloneHolder(args *cloneArgs, all, old *[1]uint64) (uintptr, unix.Errno) {
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, sigSetmask, uintptr(unsafe.Pointer(all)), uintptr(unsafe.Pointer(old)), 8, 0, 0); errno != 0 {
		return 0, errno
	}
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno == 0 && pid == 0 {
		for {
			_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, sigSetmask, uintptr(unsafe.Pointer(old)), 0, 8, 0, 0)
	return pid, errno
}
