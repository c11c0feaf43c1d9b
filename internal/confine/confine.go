// Package confine takes from a process what it does not need, for good: capabilities, new privileges, system calls.
//
// Capabilities belong to threads, and the runtime has several before main runs. So Drop takes them out of the bounding set of the calling
// thread only, and the caller executes the program anew: what exec gives to root is what the bounding set still holds, and all threads begin
// with that (capabilities(7)). Syscalls installs a filter on all threads at once (SECCOMP_FILTER_FLAG_TSYNC).
//
// Landlock, which also belongs to threads, is taken on in the same moment. Stage does all that.
//
// A tree that is restored must never be a descendant of a confined process: it would inherit all of this.
package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Limits of a process.
type Limits struct {
	Keep []int // capabilities
	// Writable are files, and directories with all below, which alone may be written, made or removed; nil: no limit. Where the kernel has no
	// Landlock there is none either.
	Writable []string
}

// stageEnv marks a process that Stage has executed anew, and what that starts.
const stageEnv = "LAZYMIG_CONFINED"

// Stage is called by a process that has just begun: it limits itself and begins anew, and then Stage returns. What it starts is limited, too.
func Stage(l Limits) error {
	if os.Getenv(stageEnv) != "" {
		return check(l)
	}
	err := Drop(l.Keep...)
	if err == nil && l.Writable != nil {
		err = landlock(l.Writable)
	}
	if err == nil {
		err = unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), stageEnv+"=1"))
	}
	return fmt.Errorf("confine this process: %w", err)
}

// check sees to it that the mark tells the truth.
func check(l Limits) error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var c [2]unix.CapUserData
	if err := unix.Capget(&h, &c[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for n := range 64 {
		if c[n/32].Permitted&(1<<(n%32)) != 0 && !slices.Contains(l.Keep, n) {
			return fmt.Errorf("confine this process: it has capability %d, and %s is set: %w", n, stageEnv, unix.EPERM)
		}
	}
	if v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || v != 1 {
		return fmt.Errorf("confine this process: it may get new privileges, and %s is set: %w", stageEnv, errors.Join(err, unix.EPERM))
	}
	return nil
}

// Drop leaves, of all capabilities, those in keep for what the calling thread executes next, and forbids it new privileges. The thread
// stays locked to the goroutine.
func Drop(keep ...int) error {
	runtime.LockOSThread()
	for c := 0; ; c++ {
		if slices.Contains(keep, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // behind the last one that the kernel knows
			break
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	return nil
}
