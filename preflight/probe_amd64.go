package preflight

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The probe lets a thread of the tree do harmless system calls and tells their results: prctl(PR_GET_MDWE) and
// kcmp. Nothing in /proc shows what they show. The thread is stopped where it is, its registers and signal mask are
// kept, it executes the syscall instruction of its own vdso, and everything is put back before it goes on:
//
//	SEIZE, INTERRUPT → stop: registers and mask saved, all signals blocked
//	for each call: registers set, SYSCALL → entry, SYSCALL → exit: result
//	INTERRUPT, CONT → stop as at first: registers and mask restored, DETACH
//
// The last stop has to be of the same kind as the first: only there the kernel restarts a system call that was
// interrupted. Whatever stop the thread comes into forgets an interrupt that was asked for before (kernel/signal.c,
// ptrace_stop), so it is never let go on from a stop with registers that are not its own but with a new one: it
// would run on behind the vdso's system call. No memory of the thread is written. What the thread sees is what any debugger or freezer causes: a blocked
// epoll_wait may say EINTR. Not touched are threads in a critical section of rseq (a new instruction pointer would make
// the kernel forget the section), stopped ones, 32-bit ones and those with a system call dispatcher.
// TestProbeIsHarmless hammers this.
//
// What is left: kill -9 of whoever traces between the first change and the last stop. The kernel detaches then by itself and the thread runs on at once (kernel/ptrace.c,
// exit_ptrace), with foreign registers and all signals blocked; no second process can seize it before that. PTRACE_O_EXITKILL would make it a sure death. A frame for
// rt_sigreturn on the thread's stack would bring it back whoever dies, but is a write to memory that need not be a stack at all (a runtime's own, a red zone of
// another ABI, one that ends there), in a tree that has done nothing yet to deserve that.

const (
	ptraceGetSigmask   = 0x420a
	ptraceSetSigmask   = 0x420b
	ptraceGetRseq      = 0x420f
	ptraceGetDispatch  = 0x4210
	ptraceOSysgood     = 1
	ptraceOSeccomp     = 1 << 21
	eventStop          = 128
	sysgoodTrap        = unix.SIGTRAP | 0x80
	userCS64           = 0x33
	probeStopLimit     = 100 * time.Millisecond // a thread that sleeps uninterruptibly for so long is let be
	probeLimit         = 30 * time.Second       // one that does not get a CPU, and putting registers back
	probeRetries       = 20                     // rseq sections are microseconds long
	noSyscall          = ^uint64(0)
	sizeofDispatchConf = 32
)

var (
	errBusy   = errors.New("in a critical section")
	errCannot = errors.New("cannot be asked")
)

// call is a system call to be done by the thread.
type call struct {
	nr   uint64
	args [5]uint64
}

// tracee is a thread between SEIZE and DETACH. All methods run on the thread that seized it.
type tracee struct {
	tid     int
	saved   unix.PtraceRegs
	mask    uint64
	changed bool // the registers are not the thread's own
	gone    bool
	stopped bool        // it is in a stop that wait told of
	signal  unix.Signal // that this stop was for, and that is to be delivered; 0: none
}

// ask makes a thread do the calls. It must run on a locked thread that ends soon: if it fails to detach, the
// end of the thread detaches.
func ask(tid int, seccomp bool, insn uint64, calls []call) (results []int64, err error) {
	err = inThread(tid, seccomp, func(p *tracee) error {
		for _, c := range calls {
			r, err := p.do(insn, c)
			if err != nil {
				return err
			}
			results = append(results, r)
		}
		return nil
	})
	return results, err
}

// inThread stops a thread for f, again if it is busy.
func inThread(tid int, seccomp bool, f func(*tracee) error) error {
	for i := 0; ; i++ {
		if err := inThreadOnce(tid, seccomp, f); !errors.Is(err, errBusy) || i == probeRetries {
			return err
		}
	}
}

func inThreadOnce(tid int, seccomp bool, f func(*tracee) error) (err error) {
	opts := uintptr(ptraceOSysgood)
	if seccomp {
		opts |= ptraceOSeccomp // its filter would refuse or kill
	}
	if err := ptrace(unix.PTRACE_SEIZE, tid, 0, opts); err != nil {
		return fmt.Errorf("seize thread %d: %w", tid, err)
	}
	p := &tracee{tid: tid}
	if err := p.stop(); err != nil {
		_ = ptrace(unix.PTRACE_DETACH, tid, 0, 0)
		return err
	}
	defer func() {
		if e := p.restore(); e != nil {
			err = errors.Join(err, e)
		}
	}()
	if err := p.look(); err != nil {
		return err
	}
	if err := p.setMask(^uint64(0)); err != nil {
		return err
	}
	return f(p)
}

func ptrace(req, tid int, addr, data uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// wait waits for the next stop. It polls: a blocking wait could not be given up. An uninterruptible sleep is waited for only if patient.
func (p *tracee) wait(patient bool) (unix.WaitStatus, error) {
	began := time.Now()
	for n := 0; ; n++ {
		var st unix.WaitStatus
		got, err := unix.Wait4(p.tid, &st, unix.WALL|unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			p.gone = true
			return 0, fmt.Errorf("wait for thread %d: %w", p.tid, err)
		case got == p.tid:
			if st.Exited() || st.Signaled() {
				p.gone = true
				return 0, fmt.Errorf("thread %d: %w", p.tid, unix.ESRCH)
			}
			p.stopped, p.signal = true, 0
			if sig := st.StopSignal(); !isEventStop(st) && sig != sysgoodTrap && sig != unix.SIGTRAP {
				p.signal = sig
			}
			return st, nil
		case time.Since(began) > probeLimit, !patient && time.Since(began) > probeStopLimit && p.uninterruptible():
			return 0, fmt.Errorf("thread %d does not stop: %w", p.tid, errCannot)
		}
		if n > 50 {
			time.Sleep(50 * time.Microsecond) //nolint:forbidigo // a wait that can be given up
		}
	}
}

// uninterruptible tells a thread that sleeps from one that only waits for a CPU.
func (p *tracee) uninterruptible() bool {
	st, err := readStat(fmt.Sprintf("/proc/%d", p.tid))
	return err == nil && st.state == 'D'
}

// resume lets the thread go on from a stop.
func (p *tracee) resume(how int) error {
	if err := ptrace(how, p.tid, 0, uintptr(p.signal)); err != nil {
		return fmt.Errorf("continue thread %d: %w", p.tid, err)
	}
	p.stopped = false
	return nil
}

func isEventStop(st unix.WaitStatus) bool { return uint32(st)>>16 == eventStop }

// stop brings the thread into the stop that PTRACE_INTERRUPT makes. Signals that come first are delivered: its
// registers are still its own.
func (p *tracee) stop() error {
	if err := ptrace(unix.PTRACE_INTERRUPT, p.tid, 0, 0); err != nil {
		return fmt.Errorf("interrupt thread %d: %w", p.tid, err)
	}
	for {
		st, err := p.wait(false)
		if err != nil {
			return err
		}
		if isEventStop(st) {
			if st.StopSignal() != unix.SIGTRAP {
				return fmt.Errorf("thread %d is stopped: %w", p.tid, errCannot)
			}
			return nil
		}
		if err := ptrace(unix.PTRACE_INTERRUPT, p.tid, 0, 0); err != nil { // this stop has forgotten the first
			return fmt.Errorf("interrupt thread %d: %w", p.tid, err)
		}
		if err := p.resume(unix.PTRACE_CONT); err != nil {
			return err
		}
	}
}

// look saves the state and says whether the thread may be used here.
func (p *tracee) look() error {
	if err := unix.PtraceGetRegs(p.tid, &p.saved); err != nil {
		return fmt.Errorf("get registers of %d: %w", p.tid, err)
	}
	if err := ptrace(ptraceGetSigmask, p.tid, 8, uintptr(unsafe.Pointer(&p.mask))); err != nil {
		return fmt.Errorf("get signal mask of %d: %w", p.tid, err)
	}
	if p.saved.Cs != userCS64 {
		return fmt.Errorf("32-bit thread %d: %w", p.tid, errCannot)
	}
	var conf [sizeofDispatchConf]byte // mode, selector, offset, length
	if ptrace(ptraceGetDispatch, p.tid, sizeofDispatchConf, uintptr(unsafe.Pointer(&conf))) == nil && binary.NativeEndian.Uint64(conf[:]) != 0 {
		return fmt.Errorf("thread %d has a system call dispatcher: %w", p.tid, errCannot)
	}
	return p.lookRseq()
}

// lookRseq refuses a thread inside a restartable sequence.
func (p *tracee) lookRseq() error {
	var conf [24]byte // pointer, size, signature, flags, pad
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetRseq, uintptr(p.tid), uintptr(len(conf)), uintptr(unsafe.Pointer(&conf)), 0, 0); errno != 0 {
		return nil // a kernel before 5.13: no CRIU there either that minds rseq
	}
	area := binary.NativeEndian.Uint64(conf[:])
	if area == 0 {
		return nil
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.tid))
	if err != nil {
		return fmt.Errorf("open memory of %d: %w", p.tid, err)
	}
	defer mem.Close()
	var b [32]byte
	if _, err := mem.ReadAt(b[:8], int64(area+8)); err != nil {
		return fmt.Errorf("read rseq area of %d: %w", p.tid, err)
	}
	cs := binary.NativeEndian.Uint64(b[:8])
	if cs == 0 {
		return nil
	}
	if _, err := mem.ReadAt(b[:], int64(cs)); err != nil { // version, flags, start_ip, post_commit_offset, abort_ip
		return fmt.Errorf("read rseq section of %d: %w", p.tid, err)
	}
	start, length := binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])
	if p.saved.Rip-start < length {
		return errBusy
	}
	return nil
}

func (p *tracee) setMask(m uint64) error {
	if err := ptrace(ptraceSetSigmask, p.tid, 8, uintptr(unsafe.Pointer(&m))); err != nil {
		return fmt.Errorf("set signal mask of %d: %w", p.tid, err)
	}
	p.changed = true
	return nil
}

// do runs one system call and returns what it returned.
func (p *tracee) do(insn uint64, c call) (int64, error) {
	if err := p.prepare(insn, c); err != nil {
		return 0, err
	}
	for range 2 { // entry and exit
		if err := p.resume(unix.PTRACE_SYSCALL); err != nil {
			return 0, err
		}
		st, err := p.wait(true)
		if err != nil {
			return 0, err
		}
		if isEventStop(st) || st.StopSignal() != sysgoodTrap {
			return 0, fmt.Errorf("thread %d was stopped by %v: %w", p.tid, st.StopSignal(), errCannot)
		}
	}
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(p.tid, &r); err != nil {
		return 0, fmt.Errorf("get result from %d: %w", p.tid, err)
	}
	return int64(r.Rax), nil
}

// prepare sets the registers for a system call.
func (p *tracee) prepare(insn uint64, c call) error {
	r := p.saved
	r.Rip, r.Rax, r.Orig_rax = insn, c.nr, noSyscall
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], 0
	if err := unix.PtraceSetRegs(p.tid, &r); err != nil {
		return fmt.Errorf("set registers of %d: %w", p.tid, err)
	}
	return nil
}

// restore puts everything back and lets go. Until the registers are the thread's own again it may not run.
func (p *tracee) restore() error {
	if p.gone {
		return nil
	}
	if p.changed {
		if err := p.stopForRestore(); err != nil {
			return err
		}
		err1 := unix.PtraceSetRegs(p.tid, &p.saved)
		err2 := ptrace(ptraceSetSigmask, p.tid, 8, uintptr(unsafe.Pointer(&p.mask)))
		if err := errors.Join(err1, err2); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("put back registers of %d: %w", p.tid, err)
		}
	}
	if err := ptrace(unix.PTRACE_DETACH, p.tid, 0, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("detach from %d: %w", p.tid, err)
	}
	return nil
}

// stopForRestore brings it from whatever stop, or from running, to an event stop. All signals but SIGKILL and SIGSTOP
// are blocked; an event stop by SIGSTOP will do as well, the stop stays in effect after the detach.
func (p *tracee) stopForRestore() error {
	for {
		if err := ptrace(unix.PTRACE_INTERRUPT, p.tid, 0, 0); err != nil {
			return ignoreGone(p, err)
		}
		if p.stopped {
			if err := p.resume(unix.PTRACE_CONT); err != nil {
				return ignoreGone(p, err)
			}
		}
		st, err := p.wait(true)
		if err != nil {
			return ignoreGone(p, err)
		}
		if isEventStop(st) {
			return nil
		}
	}
}

func ignoreGone(p *tracee, err error) error {
	if p.gone || errors.Is(err, unix.ESRCH) {
		p.gone = true
		return nil
	}
	return fmt.Errorf("stop thread %d: %w", p.tid, err)
}

// syscallInsn finds a syscall instruction in the task's vdso.
func syscallInsn(dir string, vmas []vma) (uint64, bool) {
	for i := range vmas {
		v := &vmas[i]
		if v.path != "[vdso]" || v.end-v.start > 1<<20 {
			continue
		}
		f, err := os.Open(dir + "/mem")
		if err != nil {
			return 0, false
		}
		defer f.Close()
		b := make([]byte, v.end-v.start)
		if _, err := f.ReadAt(b, int64(v.start)); err != nil {
			return 0, false
		}
		if n := bytes.Index(b, []byte{0x0f, 0x05}); n >= 0 {
			return v.start + uint64(n), true
		}
	}
	return 0, false
}
