package detach

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A call is one system call of a table, 64 bytes: number, six arguments, result.
type call struct {
	nr   uint64
	args [6]uint64
}

func sysCall(nr int, args ...uint64) call {
	c := call{nr: uint64(nr)}
	copy(c.args[:], args)
	return c
}

const (
	callSize  = 64
	tableSize = 64 << 10 // 1024 calls
	dataSize  = 64 << 10 // what they point to
	codeSize  = 4096
)

// tableCode makes R12 system calls, those of the table at RBX, and traps.
var tableCode = []byte{
	0x4d, 0x85, 0xe4, // test r12, r12
	0x74, 0x2a, // jz trap
	0x48, 0x8b, 0x03, // mov rax, [rbx]
	0x48, 0x8b, 0x7b, 0x08, // mov rdi, [rbx+8]
	0x48, 0x8b, 0x73, 0x10, // mov rsi, [rbx+16]
	0x48, 0x8b, 0x53, 0x18, // mov rdx, [rbx+24]
	0x4c, 0x8b, 0x53, 0x20, // mov r10, [rbx+32]
	0x4c, 0x8b, 0x43, 0x28, // mov r8, [rbx+40]
	0x4c, 0x8b, 0x4b, 0x30, // mov r9, [rbx+48]
	0x0f, 0x05, // syscall
	0x48, 0x89, 0x43, 0x38, // mov [rbx+56], rax
	0x48, 0x83, 0xc3, 0x40, // add rbx, 64
	0x49, 0xff, 0xcc, // dec r12
	0xeb, 0xd1, // jmp start
	0xcc, // trap: int3
}

// childCode clones with the flags in RDI, a vfork; the child makes the call at RBX and exits, the parent reaps it and traps. Neither uses the
// stack, which they share.
var childCode = []byte{
	0xb8, 56, 0, 0, 0, // mov eax, SYS_clone
	0x31, 0xf6, // xor esi, esi
	0x31, 0xd2, // xor edx, edx
	0x4d, 0x31, 0xd2, // xor r10, r10
	0x4d, 0x31, 0xc0, // xor r8, r8
	0x0f, 0x05, // syscall
	0x48, 0x85, 0xc0, // test rax, rax
	0x75, 0x26, // jnz parent
	0x48, 0x8b, 0x03, // mov rax, [rbx]
	0x48, 0x8b, 0x7b, 0x08, // mov rdi, [rbx+8]
	0x48, 0x8b, 0x73, 0x10, // mov rsi, [rbx+16]
	0x48, 0x8b, 0x53, 0x18, // mov rdx, [rbx+24]
	0x4c, 0x8b, 0x53, 0x20, // mov r10, [rbx+32]
	0x4c, 0x8b, 0x43, 0x28, // mov r8, [rbx+40]
	0x0f, 0x05, // syscall
	0x48, 0x89, 0x43, 0x38, // mov [rbx+56], rax
	0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
	0x31, 0xff, // xor edi, edi
	0x0f, 0x05, // syscall
	0x48, 0x89, 0x43, 0x08, // parent: mov [rbx+8], rax
	0x48, 0x89, 0xc7, // mov rdi, rax
	0xb8, 61, 0, 0, 0, // mov eax, SYS_wait4
	0x31, 0xf6, // xor esi, esi
	0xba, 0, 0, 0, 0x40, // mov edx, __WALL
	0x4d, 0x31, 0xd2, // xor r10, r10
	0x0f, 0x05, // syscall
	0xcc, // int3
}

const childOffset = 256 // of childCode in the code page

// injected is a thread that runs calls of ours.
type injected struct {
	t     *task
	mem   *os.File
	regs  unix.PtraceRegs // its own
	mask  uint64
	gate  uint64 // a syscall instruction
	code  uint64
	table uint64          // and data behind it
	sched *unix.SchedAttr // nil: it was not changed
	slack []byte          // timer slack, which a real-time thread has none of; with sched
	slow  bool            // SIGTRAP is ignored: int3 would make that SIG_DFL (kernel/signal.c, force_sig_info_to_task)
}

// inject prepares a stopped thread for run.
func inject(t *task) (*injected, error) {
	j := &injected{t: t}
	if err := j.begin(); err != nil {
		j.close()
		return nil, fmt.Errorf("run system calls in process %d: %w", t.pid, err)
	}
	t.inj = j
	return j, nil
}

func (j *injected) begin() error {
	if err := j.take(); err != nil {
		return err
	}
	anon := uint64(unix.MAP_PRIVATE | unix.MAP_ANONYMOUS)
	none := ^uint64(0)
	table, err := j.one(unix.SYS_MMAP, 0, tableSize+dataSize, unix.PROT_READ|unix.PROT_WRITE, anon, none, 0)
	if err != nil {
		return fmt.Errorf("map table: %w", err)
	}
	j.table = table
	code, err := j.one(unix.SYS_MMAP, 0, codeSize, unix.PROT_READ|unix.PROT_EXEC, anon, none, 0)
	if err != nil {
		return fmt.Errorf("map code: %w", err)
	}
	j.code = code
	page := bytes.Repeat([]byte{0xcc}, codeSize)
	copy(page, tableCode)
	copy(page[childOffset:], childCode)
	if _, err := j.mem.WriteAt(page, int64(code)); err != nil {
		return fmt.Errorf("write code: %w", err)
	}
	return nil
}

// take is all that one needs.
func (j *injected) take() (err error) {
	if err := unix.PtraceGetRegs(j.t.tid, &j.regs); err != nil {
		return fmt.Errorf("read registers: %w", err)
	}
	if j.regs.Cs != 0x33 {
		return errors.New("it is not a 64-bit program")
	}
	if j.mask, err = getSigmask(j.t.tid); err != nil {
		return fmt.Errorf("read signal mask: %w", err)
	}
	ignored, err := strconv.ParseUint(statusOf(j.t.tid, "SigIgn"), 16, 64)
	if err != nil {
		return fmt.Errorf("read ignored signals: %w", err)
	}
	j.slow = ignored&(1<<(unix.SIGTRAP-1)) != 0
	if j.mem, err = os.OpenFile(fmt.Sprintf("/proc/%d/mem", j.t.tid), os.O_RDWR, 0); err != nil {
		return err
	}
	if j.gate, err = findSyscall(j.t.tid, j.mem); err != nil {
		return err
	}
	if err := setSigmask(j.t.tid, ^uint64(1<<(unix.SIGTRAP-1))); err != nil {
		return fmt.Errorf("set signal mask: %w", err)
	}
	j.t.inj = j // from here on it has to leave
	j.hurry()
	return nil
}

// findSyscall finds a syscall instruction in the vDSO.
func findSyscall(tid int, mem *os.File) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", tid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 6 || f[5] != "[vdso]" {
			continue
		}
		start, end, err := parseRange(f[0])
		if err != nil {
			return 0, err
		}
		text := make([]byte, end-start)
		if _, err := mem.ReadAt(text, int64(start)); err != nil {
			return 0, fmt.Errorf("read vDSO: %w", err)
		}
		if i := bytes.Index(text, []byte{0x0f, 0x05}); i >= 0 {
			return start + uint64(i), nil
		}
	}
	return 0, errors.New("it has no vDSO with a syscall instruction")
}

// data is where what calls point to lies in the process.
func (j *injected) data(off uint64) uint64 { return j.table + tableSize + off }

func (j *injected) put(off uint64, b []byte) error {
	if off+uint64(len(b)) > dataSize {
		return fmt.Errorf("write arguments: %w", unix.E2BIG)
	}
	_, err := j.mem.WriteAt(b, int64(j.data(off)))
	return err
}

func (j *injected) get(off uint64, b []byte) error {
	_, err := j.mem.ReadAt(b, int64(j.data(off)))
	return err
}

// one makes a call by the syscall instruction of the vDSO and stops at its end, at a syscall-exit stop.
func (j *injected) one(nr int, args ...uint64) (uint64, error) {
	r := j.regs
	r.Rip, r.Orig_rax, r.Rax = j.gate, ^uint64(0), uint64(nr)
	for i, p := range []*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9} {
		*p = 0
		if i < len(args) {
			*p = args[i]
		}
	}
	if err := unix.PtraceSetRegs(j.t.tid, &r); err != nil {
		return 0, fmt.Errorf("set registers: %w", err)
	}
	for range 2 { // enter, exit
		if err := j.step(true); err != nil {
			return 0, err
		}
	}
	if err := unix.PtraceGetRegs(j.t.tid, &r); err != nil {
		return 0, fmt.Errorf("read registers: %w", err)
	}
	if e := int64(r.Rax); e < 0 && e > -4096 {
		return 0, unix.Errno(-e)
	}
	return r.Rax, nil
}

var errEnded = errors.New("the process has ended")

// step lets the thread run to its next system call stop, or to the int3 of our code.
func (j *injected) step(toSyscall bool) error {
	req := unix.PTRACE_CONT
	if toSyscall {
		req = unix.PTRACE_SYSCALL
	}
	for {
		if err := ptrace(req, j.t.tid, 0, 0); err != nil {
			return fmt.Errorf("let it run: %w", err)
		}
		j.t.atSignal = false
		ws, err := j.t.wait(time.Time{})
		if err != nil {
			return err
		}
		if j.t.dead {
			return errEnded
		}
		sig, event := ws.StopSignal(), int(ws)>>16
		switch {
		case event != 0: // our PTRACE_INTERRUPT, or a group stop
			if event != ptraceEventStop {
				return fmt.Errorf("unexpected ptrace event %d", event)
			}
			continue
		case sig == unix.SIGTRAP|0x80:
			if toSyscall {
				return nil
			}
			return errors.New("unexpected system call stop")
		}
		si, err := getSiginfo(j.t.tid)
		if err != nil {
			return fmt.Errorf("read signal: %w", err)
		}
		switch {
		case sig == unix.SIGTRAP && si.code == siKernel && !toSyscall:
			return nil
		case si.code > 0 && (sig == unix.SIGSEGV || sig == unix.SIGILL || sig == unix.SIGBUS):
			return fmt.Errorf("its code for us got %v", sig)
		}
		j.t.kept = append(j.t.kept, si)
	}
}

// run makes calls, in order, all of them whatever they return, and gives their results.
func (j *injected) run(calls ...call) ([]int64, error) {
	var all []int64
	for len(calls) > 0 {
		n := min(len(calls), tableSize/callSize)
		res, err := j.runTable(calls[:n])
		if err != nil {
			return nil, fmt.Errorf("run system calls in process %d: %w", j.t.pid, err)
		}
		all, calls = append(all, res...), calls[n:]
	}
	return all, nil
}

func (j *injected) runTable(calls []call) ([]int64, error) {
	b := make([]byte, len(calls)*callSize)
	for i, c := range calls {
		binary.NativeEndian.PutUint64(b[i*callSize:], c.nr)
		for k, a := range c.args {
			binary.NativeEndian.PutUint64(b[i*callSize+8+8*k:], a)
		}
	}
	if _, err := j.mem.WriteAt(b, int64(j.table)); err != nil {
		return nil, fmt.Errorf("write table: %w", err)
	}
	r := j.regs
	r.Rip, r.Orig_rax, r.Rbx, r.R12 = j.code, ^uint64(0), j.table, uint64(len(calls))
	if err := unix.PtraceSetRegs(j.t.tid, &r); err != nil {
		return nil, fmt.Errorf("set registers: %w", err)
	}
	if j.slow {
		return j.runSlow(len(calls))
	}
	if err := j.step(false); err != nil {
		return nil, err
	}
	if _, err := j.mem.ReadAt(b, int64(j.table)); err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	res := make([]int64, len(calls))
	for i := range res {
		res[i] = int64(binary.NativeEndian.Uint64(b[i*callSize+56:]))
	}
	return res, nil
}

// runSlow stops at each call instead of at the trap.
func (j *injected) runSlow(n int) ([]int64, error) {
	var res []int64
	for range n {
		var r unix.PtraceRegs
		for range 2 {
			if err := j.step(true); err != nil {
				return nil, err
			}
		}
		if err := unix.PtraceGetRegs(j.t.tid, &r); err != nil {
			return nil, fmt.Errorf("read registers: %w", err)
		}
		res = append(res, int64(r.Rax))
	}
	return res, nil
}

// inChild makes one call in a child that shares the memory and is made with these flags, and gives its result. The child is not traced.
func (j *injected) inChild(flags uint64, c call) (int64, error) {
	if j.slow {
		return 0, errors.New("the process ignores SIGTRAP")
	}
	b := make([]byte, callSize)
	binary.NativeEndian.PutUint64(b, c.nr)
	for k, a := range c.args {
		binary.NativeEndian.PutUint64(b[8+8*k:], a)
	}
	none := int64(unix.EINPROGRESS)
	binary.NativeEndian.PutUint64(b[56:], uint64(-none))
	if _, err := j.mem.WriteAt(b, int64(j.table)); err != nil {
		return 0, fmt.Errorf("write table: %w", err)
	}
	r := j.regs
	r.Rip, r.Orig_rax, r.Rbx, r.Rdi = j.code+childOffset, ^uint64(0), j.table, flags
	if err := unix.PtraceSetRegs(j.t.tid, &r); err != nil {
		return 0, fmt.Errorf("set registers: %w", err)
	}
	if err := j.step(false); err != nil {
		return 0, err
	}
	if _, err := j.mem.ReadAt(b, int64(j.table)); err != nil {
		return 0, fmt.Errorf("read results: %w", err)
	}
	if pid := int64(binary.NativeEndian.Uint64(b[8:])); pid < 0 {
		return 0, fmt.Errorf("make child: %w", unix.Errno(-pid))
	}
	return int64(binary.NativeEndian.Uint64(b[56:])), nil
}
