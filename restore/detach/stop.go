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
	opts     uintptr // of ptrace
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
				t := &task{pid: pid, tid: tid}
				ok, err := t.seize()
				if err != nil {
					return fmt.Errorf("stop thread %d of process %d: %w", tid, pid, err)
				}
				if ok {
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
func (t *task) seize() (bool, error) {
	t.opts = unix.PTRACE_O_TRACESYSGOOD
	if seccomped(t.tid) {
		t.opts |= suspendSeccomp
	}
	if err := ptrace(unix.PTRACE_SEIZE, t.tid, 0, t.opts); err != nil {
		if errors.Is(err, unix.ESRCH) || state(t.tid) == 'Z' || state(t.tid) == 'X' || state(t.tid) == 0 {
			return false, nil
		}
		return false, fmt.Errorf("seize: %w", err)
	}
	if err := unix.PtraceInterrupt(t.tid); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("interrupt: %w", err)
	}
	return true, nil
}

// bind says whether the stopped tree dies with this process, by the kernel, before one more of its instructions runs. Else it goes on as it stands.
func (s *stopped) bind(on bool) error {
	for _, t := range s.tasks {
		opts := t.opts
		if on {
			opts |= unix.PTRACE_O_EXITKILL
		}
		if err := ptrace(unix.PTRACE_SETOPTIONS, t.tid, 0, opts); err != nil && !errors.Is(err, unix.ESRCH) { // that: it has been killed
			return fmt.Errorf("set options of thread %d: %w", t.tid, err)
		}
	}
	return nil
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
	t.goOn()
	return nil
}

// epoll_wait(2) and its kind say EINTR instead of restarting; nothing has happened for them either.
var endWithEINTR = map[uint64]bool{unix.SYS_EPOLL_WAIT: true, unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_PWAIT2: true}

const restartNoHand = 514 // ERESTARTNOHAND, include/linux/errno.h: EINTR if a handler runs, else it goes on

// goOn makes an interrupted call that would end with EINTR go on, however the thread is let go: also by the end of this process.
func (t *task) goOn() {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(t.tid, &r); err != nil || !endWithEINTR[r.Orig_rax] || int64(r.Rax) != -int64(unix.EINTR) {
		return
	}
	r.Rax = ^uint64(restartNoHand - 1)
	_ = unix.PtraceSetRegs(t.tid, &r) // else it sees EINTR
}

// putBack makes a thread what it was. It still stands.
func (t *task) putBack() error {
	if t.dead {
		return nil
	}
	if t.inj != nil {
		if err := t.inj.leave(); err != nil && !t.dead {
			return err
		}
	}
	return nil
}

// letGo lets a thread run that is what it was.
func (t *task) letGo() error {
	if t.dead {
		return nil
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

// release lets all go. done, which may be nil, is called when everything is in its place and nothing runs yet.
func (s *stopped) release(done func()) error {
	var errs []error
	for _, t := range s.tasks {
		errs = append(errs, t.putBack())
	}
	if done != nil && errors.Join(errs...) == nil {
		done()
	}
	errs = append(errs, s.bind(false))
	for _, t := range s.tasks {
		errs = append(errs, t.letGo())
	}
	s.tasks = nil
	return errors.Join(errs...)
}
