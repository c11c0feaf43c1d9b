package preflight

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestProbeGivenUp gives a probe up in the middle of a system call, as one is that does not end in time: the stop at that call's exit
// forgets the interrupt. The thread must not take one step with registers that are not its own.
func TestProbeGivenUp(t *testing.T) {
	v := mode(t, "busy")
	vmas, err := readVMAs("/proc/" + itoa(v.pid) + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	dir := "/proc/" + itoa(v.pid)
	insn, ok := syscallInsn(dir, vmas)
	if !ok {
		t.Fatal("no system call in the vdso")
	}
	for _, c := range []struct {
		what  string
		steps int  // to where it is given up
		state byte // which the thread is in by then; 0: any
	}{
		{"before the call", 0, 0},
		{"in the stop before the call", 1, 't'},
		{"in the call", 2, 'S'},
	} {
		for n := 0; n < 20; {
			err := ownThread(func() error { return giveUp(v.pid, insn, c.steps, c.state) })
			switch {
			case errors.Is(err, errCannot): // it was in a vfork
			case err != nil:
				t.Fatalf("%s: %v", c.what, err)
			default:
				n++
			}
		}
	}
	v.in.Close()
	if said := await(t, v.out); len(said) != 1 || !strings.HasPrefix(said[0], "rounds ") {
		t.Errorf("it said %q", said)
	}
}

// giveUp probes with a call that sleeps, and does not wait for the stop of the last step.
func giveUp(pid int, insn uint64, steps int, state byte) error {
	if err := ptrace(unix.PTRACE_SEIZE, pid, 0, ptraceOSysgood); err != nil {
		return err
	}
	p := &tracee{tid: pid}
	if err := p.stop(); err != nil {
		return err
	}
	err := p.look()
	if err == nil {
		err = p.setMask(^uint64(0))
	}
	if err == nil {
		err = p.prepare(insn, call{nr: unix.SYS_PAUSE})
	}
	for i := 0; err == nil && i < steps; i++ {
		if i > 0 {
			_, err = p.wait(false)
		}
		if err == nil {
			err = p.resume(unix.PTRACE_SYSCALL)
		}
	}
	for began := time.Now(); err == nil && state != 0; runtime.Gosched() {
		var st procStat
		if st, err = readStat("/proc/" + itoa(pid)); st.state == state {
			break
		}
		if err == nil && time.Since(began) > kerneltest.Patience {
			err = fmt.Errorf("its state is %c, not %c", st.state, state)
		}
	}
	if e := p.restore(); err == nil {
		err = e
	}
	return err
}
