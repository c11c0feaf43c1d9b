package preflight

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// InjectorArg names the hidden subcommand that must call InjectorMain.
const InjectorArg = "injector"

// injectorFD is the socket that it inherits.
const injectorFD = 3

// Injector is a process that lets others make system calls (Borrow, CloseIn). When a tracer dies its tracee runs on with the registers that it has (kernel/ptrace.c, exit_ptrace), and between two steps these are not
// its own. So the steps are not made by the process that somebody may kill for what it does otherwise, or that grows, but by one that does nothing else, lives for as long as memory is
// copied ahead, and finishes what it has begun when whoever started it is gone.
type Injector struct {
	cmd  *exec.Cmd
	sock *fdpass.Socket
	once sync.Once
	err  error
}

// injection is what is asked for.
type injection struct {
	PID   int
	NR    uint64   `json:",omitempty"` // Borrow
	Args  []uint64 `json:",omitempty"`
	Close int      `json:",omitempty"` // CloseIn, if NR is 0
}

// injected is the answer; a descriptor comes with it if one was asked for.
type injected struct {
	Err string `json:",omitempty"`
}

// StartInjector starts one; exe is this program.
func StartInjector(exe string) (*Injector, error) {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("start injector: %w", err)
	}
	defer peer.Close()
	cmd := exec.Command(exe, InjectorArg)
	cmd.Dir, cmd.Stderr, cmd.ExtraFiles = "/", os.Stderr, []*os.File{peer}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // not killed with this process's group or terminal
	if err := cmd.Start(); err != nil {
		sock.Close()
		return nil, fmt.Errorf("start injector: %w", err)
	}
	return &Injector{cmd: cmd, sock: sock}, nil
}

// Borrow is the function of that name.
func (i *Injector) Borrow(pid int, nr uint64, args ...uint64) (*os.File, error) {
	return i.ask(injection{PID: pid, NR: nr, Args: args}, 1)
}

// CloseIn is the function of that name.
func (i *Injector) CloseIn(pid, fd int) error {
	_, err := i.ask(injection{PID: pid, Close: fd}, 0)
	return err
}

func (i *Injector) ask(q injection, files int) (*os.File, error) {
	b, err := json.Marshal(q)
	if err == nil {
		err = i.sock.Send(b)
	}
	if err != nil {
		return nil, fmt.Errorf("ask injector: %w", err)
	}
	buf := make([]byte, 4096)
	n, got, err := i.sock.Recv(buf)
	if err != nil {
		return nil, fmt.Errorf("ask injector: %w", err)
	}
	var a injected
	err = json.Unmarshal(buf[:n], &a)
	if err == nil && a.Err != "" {
		err = errors.New(a.Err)
	}
	if err == nil && len(got) != files {
		err = fmt.Errorf("it gives %d descriptors: %w", len(got), unix.EBADMSG)
	}
	if err != nil {
		fdpass.CloseAll(got)
		return nil, fmt.Errorf("ask injector: %w", err)
	}
	if files == 0 {
		return nil, nil
	}
	return got[0], nil
}

// Close ends it. May be called more than once, also of nil.
func (i *Injector) Close() error {
	if i == nil {
		return nil
	}
	i.once.Do(func() {
		i.sock.Close()
		i.err = i.cmd.Wait()
	})
	return i.err
}

// InjectorMain is the hidden subcommand. It ends with whoever started it.
func InjectorMain(log *slog.Logger) error {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) // where that is not allowed it is as likely as others, and small
	sock, err := fdpass.New(os.NewFile(injectorFD, "injector"))
	if err != nil {
		return err
	}
	defer sock.Close()
	buf := make([]byte, 4096)
	for {
		n, files, err := sock.Recv(buf)
		fdpass.CloseAll(files)
		if errors.Is(err, fdpass.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		var q injection
		if err := json.Unmarshal(buf[:n], &q); err != nil {
			return fmt.Errorf("read what is asked for: %w", err)
		}
		var a injected
		var out []*os.File
		if q.NR == 0 {
			err = CloseIn(q.PID, q.Close)
		} else {
			var f *os.File
			if f, err = borrow(log, q.PID, q.NR, q.Args); err == nil {
				out = append(out, f)
			}
		}
		if err != nil {
			a.Err = err.Error()
		}
		b, err := json.Marshal(a)
		if err == nil {
			err = sock.Send(b, out...)
		}
		fdpass.CloseAll(out)
		if err != nil { // nobody is there any more
			log.Warn("answer", "err", err)
			return nil
		}
	}
}
