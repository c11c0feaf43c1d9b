package detach

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// hurry puts the thread before all ordinary ones: the whole tree waits for it. Without the right to do so it takes its turn.
func (j *injected) hurry() {
	was, err := unix.SchedGetAttr(j.t.tid, 0)
	if err != nil || was.Policy != unix.SCHED_NORMAL {
		return
	}
	slack, err := os.ReadFile(slackName(j.t.tid))
	if err != nil {
		return
	}
	if unix.SchedSetAttr(j.t.tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0) == nil {
		was.Size = unix.SizeofSchedAttr
		was.Flags &= unix.SCHED_FLAG_RESET_ON_FORK
		j.slack = slack
		j.sched = was
	}
}

func slackName(tid int) string { return fmt.Sprintf("/proc/%d/timerslack_ns", tid) }

// leave takes code and table away and gives the thread its registers and signals back; it still stands.
func (j *injected) leave() error {
	defer j.close()
	t := j.t
	t.inj = nil
	if j.sched != nil {
		if err := unix.SchedSetAttr(t.tid, j.sched, 0); err != nil {
			return fmt.Errorf("give thread %d its priority back: %w", t.tid, err)
		}
		if err := os.WriteFile(slackName(t.tid), j.slack, 0); err != nil { // it has the default now (kernel/sched/syscalls.c, __setscheduler_params)
			return fmt.Errorf("give thread %d its timer slack back: %w", t.tid, err)
		}
	}
	for _, m := range []struct{ addr, size uint64 }{{j.code, codeSize}, {j.table, tableSize + dataSize}} {
		if m.addr != 0 {
			if _, err := j.one(unix.SYS_MUNMAP, m.addr, m.size); err != nil {
				return fmt.Errorf("take code out of process %d: %w", t.pid, err)
			}
		}
	}
	// A stop at the end of a system call is not one where the kernel looks at what has to be restarted; this one is.
	if err := unix.PtraceInterrupt(t.tid); err != nil {
		return fmt.Errorf("interrupt thread %d: %w", t.tid, err)
	}
	if err := j.toTrap(); err != nil {
		return fmt.Errorf("stop thread %d: %w", t.tid, err)
	}
	if len(t.kept) > 0 {
		if err := j.deliver(); err != nil {
			return fmt.Errorf("keep signal of thread %d: %w", t.tid, err)
		}
	}
	if err := setSigmask(t.tid, j.mask); err != nil {
		return fmt.Errorf("set signal mask of thread %d: %w", t.tid, err)
	}
	if err := unix.PtraceSetRegs(t.tid, &j.regs); err != nil {
		return fmt.Errorf("set registers of thread %d: %w", t.tid, err)
	}
	return nil
}

// toTrap lets the thread go on to the stop that PTRACE_INTERRUPT asks for. It does not come to an instruction of its own.
func (j *injected) toTrap() error {
	for {
		if err := unix.PtraceCont(j.t.tid, 0); err != nil {
			return fmt.Errorf("let it run: %w", err)
		}
		ws, err := j.t.wait(time.Time{})
		if err != nil {
			return err
		}
		if j.t.dead {
			return errEnded
		}
		if int(ws)>>16 == ptraceEventStop {
			return nil
		}
		si, err := getSiginfo(j.t.tid)
		if err != nil {
			return fmt.Errorf("read signal: %w", err)
		}
		j.t.kept = append(j.t.kept, si)
	}
}

// deliver brings the thread to the place where the first signal that was kept is delivered, with all that the signal carried. Only there can
// one be given back (ptrace(2), "signal injection").
func (j *injected) deliver() error {
	t := j.t
	first := t.kept[0]
	if err := setSigmask(t.tid, ^uint64(1<<(first.signo-1))); err != nil {
		return err
	}
	if err := unix.Tgkill(t.pid, t.tid, unix.Signal(first.signo)); err != nil {
		return err
	}
	for {
		if err := unix.PtraceCont(t.tid, 0); err != nil {
			return err
		}
		ws, err := t.wait(time.Time{})
		if err != nil {
			return err
		}
		if t.dead {
			return errEnded
		}
		if int(ws)>>16 == 0 && ws.StopSignal() == unix.Signal(first.signo) {
			break
		}
	}
	t.atSignal = true
	return setSiginfo(t.tid, &first)
}

func (j *injected) close() {
	if j.mem != nil {
		j.mem.Close()
	}
}
