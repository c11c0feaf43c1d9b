package detach

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stopTime bounds how long a thread may take to stop. One that waits for the child of its vfork(2) does not before that is done.
const stopTime = 500 * time.Millisecond

// task is a stopped thread.
type task struct {
	pid, tid int
	dead     bool
	kept     []siginfo // signals that were about to be delivered when it stopped, or while it ran for us
	atSignal bool      // it stands where the first of kept is delivered
	inj      *injected // nil: nothing has run in it
}

// stopAll stops the tree. After an error those that were stopped are let go.
func (s *stopped) stopAll(list func() ([]int, error)) error {
	deadline := time.Now().Add(stopTime)
	for {
		pids, err := list()
		if err != nil {
			return fmt.Errorf("list processes of the tree: %w", err)
		}
		var fresh []*task
		for _, pid := range pids {
			tids, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
			if err != nil {
				continue // it has ended
			}
			for _, e := range tids {
				tid, _ := strconv.Atoi(e.Name())
				if s.known[tid] {
					continue
				}
				ok, err := seize(tid)
				if err != nil {
					return fmt.Errorf("stop thread %d of process %d: %w", tid, pid, err)
				}
				if ok {
					t := &task{pid: pid, tid: tid}
					s.known[tid] = true
					s.tasks = append(s.tasks, t)
					fresh = append(fresh, t)
				}
			}
		}
		if len(fresh) == 0 {
			return nil
		}
		for _, t := range fresh {
			if err := t.awaitStop(deadline); err != nil {
				return fmt.Errorf("stop thread %d of process %d: %w", t.tid, t.pid, err)
			}
		}
	}
}

// stopped is the tree, stopped.
type stopped struct {
	known map[int]bool
	later []*os.File // to be closed when the tree runs again
	tasks []*task
}

// seize attaches and interrupts; false: it is dead.
func seize(tid int) (bool, error) {
	opts := uintptr(unix.PTRACE_O_TRACESYSGOOD)
	if seccomped(tid) {
		opts |= suspendSeccomp
	}
	if err := ptrace(unix.PTRACE_SEIZE, tid, 0, opts); err != nil {
		if errors.Is(err, unix.ESRCH) || state(tid) == 'Z' || state(tid) == 'X' || state(tid) == 0 {
			return false, nil
		}
		return false, fmt.Errorf("seize: %w", err)
	}
	if err := unix.PtraceInterrupt(tid); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("interrupt: %w", err)
	}
	return true, nil
}

// state is a thread's letter in /proc, 0 if there is none.
func state(tid int) byte {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	if err != nil {
		return 0
	}
	if _, after, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " "); ok && after != "" {
		return after[0]
	}
	return 0
}

func seccomped(tid int) bool {
	v := statusOf(tid, "Seccomp")
	return v != "" && v != "0"
}

// statusOf is a line of /proc/TID/status.
func statusOf(tid int, name string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// wait waits for the thread's next stop; a zero deadline waits for as long as it takes.
func (t *task) wait(deadline time.Time) (unix.WaitStatus, error) {
	var ws unix.WaitStatus
	flags := unix.WALL
	if !deadline.IsZero() {
		flags |= unix.WNOHANG
	}
	for n := 0; ; n++ {
		got, err := unix.Wait4(t.tid, &ws, flags, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return ws, fmt.Errorf("wait: %w", err)
		case got == t.tid:
			if ws.Exited() || ws.Signaled() {
				t.dead = true
			}
			return ws, nil
		case time.Now().After(deadline):
			return ws, fmt.Errorf("it does not stop (state %c): %w", state(t.tid), unix.ETIMEDOUT)
		case n < 100:
			runtime.Gosched()
		default:
			time.Sleep(100 * time.Microsecond) //nolint:forbidigo // waitpid has no deadline
		}
	}
}

// awaitStop waits for what PTRACE_INTERRUPT brings about. A signal that is being delivered stops the thread, too: it is kept.
func (t *task) awaitStop(deadline time.Time) error {
	ws, err := t.wait(deadline)
	if err != nil || t.dead {
		return err
	}
	if ws.Stopped() && int(ws)>>16 == 0 {
		si, err := getSiginfo(t.tid)
		if err != nil {
			return fmt.Errorf("read signal: %w", err)
		}
		t.kept, t.atSignal = append(t.kept, si), true
	}
	return nil
}

// epoll_wait(2) and its kind say EINTR instead of restarting; nothing has happened for them either.
var endWithEINTR = map[uint64]bool{unix.SYS_EPOLL_WAIT: true, unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_PWAIT2: true}

const restartSys = 512 // ERESTARTSYS, include/linux/errno.h

// restart makes an interrupted call that would end with EINTR go on. Not where a signal is the reason.
func restart(r *unix.PtraceRegs, signals bool) bool {
	if signals || !endWithEINTR[r.Orig_rax] || int64(r.Rax) != -int64(unix.EINTR) {
		return false
	}
	r.Rax = ^uint64(restartSys - 1)
	return true
}

// letGo makes a thread what it was and lets it run.
func (t *task) letGo() error {
	if t.dead {
		return nil
	}
	if t.inj != nil {
		if err := t.inj.leave(); err != nil {
			return err
		}
	} else if len(t.kept) == 0 {
		var r unix.PtraceRegs
		if err := unix.PtraceGetRegs(t.tid, &r); err == nil && restart(&r, pending(t.tid)) {
			_ = unix.PtraceSetRegs(t.tid, &r) // else it sees EINTR
		}
	}
	sig := 0
	if len(t.kept) > 0 && t.atSignal {
		sig = int(t.kept[0].signo)
		t.kept = t.kept[1:]
	}
	if err := ptrace(unix.PTRACE_DETACH, t.tid, 0, uintptr(sig)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("let thread %d go: %w", t.tid, err)
	}
	for _, si := range t.kept {
		_ = unix.Tgkill(t.pid, t.tid, unix.Signal(si.signo)) // it has ended meanwhile
	}
	return nil
}

// pending says whether any signal waits for the thread.
func pending(tid int) bool {
	for _, n := range []string{"SigPnd", "ShdPnd"} {
		v, err := strconv.ParseUint(statusOf(tid, n), 16, 64)
		blocked, berr := strconv.ParseUint(statusOf(tid, "SigBlk"), 16, 64)
		if err != nil || berr != nil || v&^blocked != 0 {
			return true
		}
	}
	return false
}

// release lets all go.
func (s *stopped) release() error {
	var errs []error
	for _, t := range s.tasks {
		errs = append(errs, t.letGo())
	}
	s.tasks = nil
	return errors.Join(errs...)
}
