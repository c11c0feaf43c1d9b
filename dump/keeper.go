package dump

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
)

// KeeperArg names the hidden subcommand that must call KeeperMain.
const KeeperArg = "keeper"

// Numbers of the descriptors which the keeper inherits.
const (
	keeperMountFD  = 3
	keeperCgroupFD = 4
)

// keeperPatience bounds the wait for a keeper's answer, which takes microseconds.
const keeperPatience = 10 * time.Second

// criuGrace is how long an orphaned criu may take to roll back by itself before the keeper kills it.
const criuGrace = 15 * time.Second

// keeperMessage is one line to the keeper; it answers each by one line.
type keeperMessage struct {
	State   *undoState `json:",omitempty"` // replaces what it knew
	Granted bool       `json:",omitempty"` // never thaw; end
	Done    bool       `json:",omitempty"` // all has been undone; end
}

// keeper is this process's end.
type keeper struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	outRaw io.ReadCloser
	once   sync.Once
	err    error
}

func startKeeper(argv []string, mnt *os.File, h *hierarchy) (*keeper, error) {
	if len(argv) == 0 {
		argv = []string{"/proc/self/exe", KeeperArg}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = []*os.File{mnt, h.root}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // not killed with this process's group or terminal
	cmd.Dir = "/"
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	return &keeper{cmd: cmd, in: in, out: bufio.NewReader(out), outRaw: out}, nil
}

// tell returns when the keeper has the message.
func (k *keeper) tell(m keeperMessage) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("tell keeper: %w", err)
	}
	if f, ok := k.outRaw.(*os.File); ok { // what StdoutPipe gives
		if err := f.SetReadDeadline(time.Now().Add(keeperPatience)); err != nil {
			return fmt.Errorf("tell keeper: %w", err)
		}
	}
	if _, err := k.in.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("tell keeper: %w", err)
	}
	if _, err := k.out.ReadString('\n'); err != nil {
		return fmt.Errorf("tell keeper: no answer: %w", err)
	}
	return nil
}

// end tells the keeper to go and waits for it. One that does not answer is killed before its input ends, so that it does
// not undo anything. May be called more than once.
func (k *keeper) end(m keeperMessage) error {
	k.once.Do(func() {
		err := k.tell(m)
		if err != nil {
			_ = k.cmd.Process.Kill()
		}
		k.in.Close()
		k.outRaw.Close()
		k.err = errors.Join(err, k.cmd.Wait())
	})
	return k.err
}

// leave lets the keeper undo what it can, and waits: nil says that all has been undone.
func (k *keeper) leave() error {
	k.once.Do(func() {
		k.in.Close()
		k.outRaw.Close()
		if k.err = k.cmd.Wait(); k.err != nil {
			k.err = fmt.Errorf("the keeper could not undo it either: %w", k.err)
		}
	})
	return k.err
}

// keeperFroze is the exit code of a keeper that has left all as it was: the tree may have been given away.
const keeperFroze = 3

// KeeperMain is the hidden subcommand: it learns on standard input what has to be undone, and undoes it when its input
// ends without a word. Returns the exit code.
func KeeperMain([]string) int {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("part", "keeper")
	mnt := os.NewFile(keeperMountFD, "mnt")
	h := &hierarchy{root: os.NewFile(keeperCgroupFD, "cgroup2"), base: "/"}
	if mnt == nil || h.root == nil {
		return 2
	}
	unix.CloseOnExec(keeperMountFD)
	unix.CloseOnExec(keeperCgroupFD)
	if err := confine.Refuse(append(confine.Starts(), confine.Machine()...)...); err != nil { // it enters a mount namespace and unmounts
		log.Warn("keep without a filter of system calls", "err", err)
	}

	var state *undoState
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil { // a line cut short was not answered, so what it tells has not been done
			break
		}
		var m keeperMessage
		if err := json.Unmarshal(line, &m); err != nil {
			log.Error("read message", "err", err)
			break
		}
		if m.State != nil {
			state = m.State
		}
		_, _ = os.Stdout.WriteString("ok\n")
		if m.Granted || m.Done {
			return 0
		}
	}
	if state == nil {
		return 0
	}
	if state.Record != "" {
		b, err := os.ReadFile(state.Record)
		if err == nil && bytes.Contains(b, []byte(state.Mark)) || err != nil && !errors.Is(err, os.ErrNotExist) {
			return keeperFroze // granted, or not known: never thaw
		}
	}
	if err := rescue(state, mnt, h); err != nil {
		log.Error("undo", "err", err)
		return 1
	}
	return 0
}

// rescue waits for the criu that has lost its master, then undoes.
func rescue(u *undoState, mnt *os.File, h *hierarchy) error {
	errs := []error{awaitCRIU(u.CRIU)}
	t, err := startNSThread(mnt)
	if err != nil {
		errs = append(errs, err)
		errs = append(errs, u.undo(h, func(func() error) error { return nil }))
		return errors.Join(errs...)
	}
	defer t.close()
	return errors.Join(append(errs, u.undo(h, t.do))...)
}

// awaitCRIU waits until criu has ended by itself, which it does when its socket is closed; after criuGrace it is killed.
func awaitCRIU(pid int) error {
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for criu: %w", err)
	}
	defer unix.Close(fd)
	if !pollPidfd(fd, criuGrace) {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill criu: %w", err)
		}
		pollPidfd(fd, criuGrace)
	}
	return nil
}

func pollPidfd(fd int, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, max(int(time.Until(deadline)/time.Millisecond), 0))
		if err == nil || !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
