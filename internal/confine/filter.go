package confine

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

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

// OneOf allows a system call whose argument n is one of a few values.
func OneOf(number, n uint32, values ...uint32) Rule {
	return Rule{number, func(no uint8) []unix.SockFilter {
		p := []unix.SockFilter{load(arg(n))}
		for i, v := range values {
			left := uint8(len(values) - 1 - i)
			j := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: left, K: v}
			if left == 0 {
				j.Jf = no
			}
			p = append(p, j)
		}
		return p
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

// LoudEnv set to "1" makes a refused system call end the process with the runtime's account of who made it (SIGSYS), instead of EPERM. For tests:
// what a filter lacks must not look like an error of something else.
const LoudEnv = "LAZYMIG_CONFINE_LOUD"

// refusal is what a filter answers.
func refusal() uint32 {
	if os.Getenv(LoudEnv) == "1" {
		return unix.SECCOMP_RET_TRAP
	}
	return unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
}

// program is the filter: what no rule allows is refused, and whatever comes by another architecture's numbers. clone3, whose flags a filter
// can't see, does not exist, so that libc and the runtime fall back to clone. If others is set, what no rule names is allowed, and a rule
// without a test refuses.
func program(rules []Rule, others bool) []unix.SockFilter {
	refuse := refusal()
	named, last := uint32(unix.SECCOMP_RET_ALLOW), refuse
	if others {
		named, last = refuse, unix.SECCOMP_RET_ALLOW
	}
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
			p = append(p, jeq(r.Number, 1), ret(named))
			continue
		}
		t := r.test(1)
		p = append(p, jeq(r.Number, uint8(len(t)+2)))
		p = append(p, t...)
		p = append(p, ret(unix.SECCOMP_RET_ALLOW), ret(refuse))
	}
	return append(p, ret(last))
}

// Syscalls leaves the process, all its threads and all that it starts, only what the rules allow. The process must have no new privileges
// (Drop), or be allowed to do without.
func Syscalls(rules ...Rule) error { return install(program(rules, false)) }

// Refuse takes system calls away, all of each or what its test does not allow, and leaves all others.
func Refuse(rules ...Rule) error { return install(program(rules, true)) }

func install(p []unix.SockFilter) error {
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
