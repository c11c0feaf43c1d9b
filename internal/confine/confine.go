// Package confine takes from a process what it does not need, for good: capabilities, new privileges, system calls.
//
// Capabilities belong to threads, and the runtime has several before main runs. So Drop takes them out of the bounding set of the calling
// thread only, and the caller executes the program anew: what exec gives to root is what the bounding set still holds, and all threads begin
// with that (capabilities(7)). Syscalls installs a filter on all threads at once (SECCOMP_FILTER_FLAG_TSYNC).
//
// A tree that is restored must never be a descendant of a confined process: it would inherit all of this.
package confine

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

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

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h), and of the low half of an argument.
const (
	atNumber = 0
	atArch   = 4
	atArgs   = 16
)

func arg(n uint32) uint32 { return atArgs + 8*n }

// Rule allows a system call, all of it if the test is left zero.
type Rule struct {
	Number uint32
	test   func(no uint8) []unix.SockFilter // instructions that jump over no more to the refusal
}

// Any allows system calls with any arguments.
func Any(numbers ...uint32) []Rule {
	rules := make([]Rule, len(numbers))
	for i, n := range numbers {
		rules[i].Number = n
	}
	return rules
}

// Equal allows a system call whose argument n is v.
func Equal(number, n, v uint32) Rule {
	return Rule{number, func(no uint8) []unix.SockFilter {
		return []unix.SockFilter{load(arg(n)), {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: no, K: v}}
	}}
}

// Clear allows a system call whose argument n has none of the bits; Set one that has at least one of them.
func Clear(number, n, bits uint32) Rule {
	return Rule{number, func(no uint8) []unix.SockFilter {
		return []unix.SockFilter{load(arg(n)), {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: no, K: bits}}
	}}
}

// Set is described at Clear.
func Set(number, n, bits uint32) Rule {
	return Rule{number, func(no uint8) []unix.SockFilter {
		return []unix.SockFilter{load(arg(n)), {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: no, K: bits}}
	}}
}

func load(at uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
}

func ret(what uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what}
}

// refuse makes a system call fail with EPERM.
const refuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)

// program is the filter: what no rule allows is refused, and whatever comes by another architecture's numbers. clone3, whose flags a filter
// can't see, does not exist, so that libc and the runtime fall back to clone.
func program(rules []Rule) []unix.SockFilter {
	jeq := func(v uint32, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: no, K: v}
	}
	p := []unix.SockFilter{
		load(atArch), jeq(unix.AUDIT_ARCH_X86_64, 1),
		{Code: unix.BPF_JMP | unix.BPF_JA, K: 1},
		ret(refuse),
		load(atNumber), jeq(unix.SYS_CLONE3, 1), ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)),
	}
	for _, r := range rules {
		if r.test == nil {
			p = append(p, jeq(r.Number, 1), ret(unix.SECCOMP_RET_ALLOW))
			continue
		}
		t := r.test(1)
		p = append(p, jeq(r.Number, uint8(len(t)+2)))
		p = append(p, t...)
		p = append(p, ret(unix.SECCOMP_RET_ALLOW), ret(refuse))
	}
	return append(p, ret(refuse))
}

// Syscalls leaves the process, all its threads and all that it starts, only what the rules allow. The process must have no new privileges
// (Drop), or be allowed to do without.
func Syscalls(rules ...Rule) error {
	p := program(rules)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("filter system calls: thread %d has another filter: %w", thread, unix.EBUSY)
	}
	return nil
}

// Runtime is what a program in Go needs that reads files, talks over descriptors that it has been given, and starts nothing. pid is its own.
func Runtime(pid int) []Rule {
	return append(
		Any(
			unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_CLOSE, unix.SYS_LSEEK,
			unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_GETDENTS64, unix.SYS_FCNTL,
			unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_BRK, unix.SYS_MINCORE,
			unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
			unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
			unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_GETATTR, unix.SYS_SCHED_SETATTR,
			unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_GETRANDOM,
			unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
			unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SHUTDOWN,
			unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
		),
		Set(unix.SYS_CLONE, 0, unix.CLONE_THREAD),
		Clear(unix.SYS_OPENAT, 2, unix.O_ACCMODE|unix.O_CREAT|unix.O_TRUNC|unix.O_TMPFILE&^unix.O_DIRECTORY),
		Equal(unix.SYS_TGKILL, 0, uint32(pid)),    // the runtime's preemption
		Equal(unix.SYS_PRCTL, 0, unix.PR_SET_VMA), // the runtime names its mappings
	)
}
