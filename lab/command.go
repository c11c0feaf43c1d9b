package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// request asks init to start a command; the descriptors come with it, those
// that are not null in Files.
type request struct {
	Args   []string
	Env    []string
	Dir    string
	Files  []bool // for each descriptor: passed (true) or the host's /dev/null
	Uid    uint32
	Gid    uint32
	Detach bool // the command outlives the connection
}

// event is what init answers: first Pid or Error, at the end Status.
type event struct {
	Pid    int                 `json:",omitempty"`
	Status *syscall.WaitStatus `json:",omitempty"`
	Error  string              `json:",omitempty"`
	Errno  syscall.Errno       `json:",omitempty"`
}

// signalMsg asks init to send a signal to the command.
type signalMsg struct{ Signal syscall.Signal }

// Env is the environment that a command gets if nothing else is said.
func Env() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8",
	}
}

// Command returns a command that will run in the host, in all its namespaces,
// in a session of its own, in /, with [Env] unless Env is set. The Process of
// the returned Cmd is a stand-in on this side: signals that it gets are passed
// on, killing it kills the command, and it ends as the command ends.
//
// Descriptors are passed as they are, but /dev/null becomes the host's own. A
// process that shall be migrated must have its standard files inside the host:
// start it through a shell that redirects them, or by [Host.Spawn] without files.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	argv := append([]string{InitArg, argExec, h.sock, "--", name}, args...)
	cmd := exec.CommandContext(ctx, h.self, argv...)
	cmd.Env = Env()
	return cmd
}

// Spawn says what to start in a host.
type Spawn struct {
	Args     []string // program and arguments
	Env      []string // nil: [Env]
	Dir      string   // in the host; empty: /
	Files    []*os.File
	Uid, Gid uint32
	Detach   bool // let it live on when the Proc is closed
}

// Proc is a process started by [Host.Spawn].
type Proc struct {
	Pid int // in the host

	conn   *fdpass.Socket
	once   sync.Once
	done   chan struct{}
	status syscall.WaitStatus
	err    error
}

// ErrLost says that the host went away before the process ended.
var ErrLost = errors.New("host is gone")

// Spawn starts a process in the host as a child of its init. A descriptor that
// is nil or missing below 3 is the host's /dev/null.
func (h *Host) Spawn(s Spawn) (*Proc, error) {
	r := request{Args: s.Args, Env: s.Env, Dir: s.Dir, Uid: s.Uid, Gid: s.Gid, Detach: s.Detach}
	if r.Env == nil {
		r.Env = Env()
	}
	files := s.Files
	for len(files) < 3 {
		files = append(files, nil)
	}
	return spawn(h.sock, r, files)
}

func spawn(sock string, r request, files []*os.File) (*Proc, error) {
	var pass []*os.File
	for _, f := range files {
		r.Files = append(r.Files, f != nil)
		if f != nil {
			pass = append(pass, f)
		}
	}
	msg, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	conn, err := dial(sock)
	if err != nil {
		return nil, err
	}
	if err := conn.Send(msg, pass...); err != nil {
		conn.Close()
		return nil, err
	}
	ev, err := recvEvent(conn)
	if err == nil && ev.Error != "" {
		err = fmt.Errorf("start %s: %s", r.Args[0], ev.Error)
		if ev.Errno != 0 {
			err = fmt.Errorf("start %s: %w", r.Args[0], ev.Errno)
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	p := &Proc{Pid: ev.Pid, conn: conn, done: make(chan struct{})}
	go p.watch()
	return p, nil
}

// watch ends with the process, the host, or Close.
func (p *Proc) watch() {
	defer close(p.done)
	ev, err := recvEvent(p.conn)
	if err != nil || ev.Status == nil {
		p.err = errors.Join(ErrLost, err)
		return
	}
	p.status = *ev.Status
}

func recvEvent(conn *fdpass.Socket) (event, error) {
	buf := make([]byte, fdpass.MaxMessage)
	n, files, err := conn.Recv(buf)
	fdpass.CloseAll(files)
	if err != nil {
		return event{}, err
	}
	var ev event
	if err := json.Unmarshal(buf[:n], &ev); err != nil {
		return event{}, fmt.Errorf("decode init's answer: %w", err)
	}
	return ev, nil
}

// Wait waits for the end of the process.
func (p *Proc) Wait(ctx context.Context) (syscall.WaitStatus, error) {
	select {
	case <-p.done:
		return p.status, p.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process.
func (p *Proc) Signal(sig syscall.Signal) error {
	msg, err := json.Marshal(signalMsg{sig})
	if err != nil {
		return fmt.Errorf("encode signal: %w", err)
	}
	return p.conn.Send(msg)
}

// Close kills the process with its process group unless it has ended or is
// detached. It does not wait for its death. It may be called twice.
func (p *Proc) Close() error {
	var err error
	p.once.Do(func() { err = p.conn.Close() })
	<-p.done
	return err
}

// execMain is the stand-in of [Host.Command]: lab-exec SOCKET -- ARGS. It
// returns the exit code.
func execMain(args []string) int {
	if len(args) < 3 || args[1] != "--" {
		fmt.Fprintln(os.Stderr, "usage: "+argExec+" SOCKET -- COMMAND [ARGUMENT…]")
		return 2
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
	env := os.Environ()
	if len(env) == 0 {
		env = Env()
	}
	p, err := spawn(args[0], request{Args: args[2:], Env: env}, inherited())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		if errors.Is(err, unix.ENOENT) {
			return 127
		}
		return 126
	}
	for {
		select {
		case s := <-signals:
			_ = p.Signal(s.(syscall.Signal)) // it may just have ended
		case <-p.done:
			if p.err != nil {
				fmt.Fprintln(os.Stderr, p.err)
				return 125
			}
			return dieLike(p.status)
		}
	}
}

// inherited returns this process's descriptors 0, 1, 2 and those that exec.Cmd
// put behind them, in order, nil where it is /dev/null.
func inherited() []*os.File {
	var files []*os.File
	for fd := range fdpass.MaxFiles {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			if fd < 3 {
				files = append(files, nil)
				continue
			}
			break
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if fd >= 3 && (err != nil || flags&unix.FD_CLOEXEC != 0) {
			break // this program's own
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
			files = append(files, nil)
			continue
		}
		if fd < 3 {
			files = append(files, []*os.File{os.Stdin, os.Stdout, os.Stderr}[fd])
			continue
		}
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprint("fd", fd)))
	}
	return files
}

// dieLike ends this process as the command ended: by the same signal where
// that is possible.
func dieLike(ws syscall.WaitStatus) int {
	if !ws.Signaled() {
		return ws.ExitStatus()
	}
	switch sig := ws.Signal(); sig {
	case unix.SIGKILL, unix.SIGTERM, unix.SIGINT, unix.SIGHUP:
		signal.Reset(sig)
		_ = unix.Kill(os.Getpid(), sig)
		_ = unix.Pause() // the signal is on its way
	}
	return 128 + int(ws.Signal())
}
