package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/setup"
)

// FirstExtraFD is the number which Options.ExtraFiles[0] has in criu, the next one is the next number.
const FirstExtraFD = 4

// rpcFD is the number of the RPC socket in criu.
const rpcFD = 3

// killAfter bounds how long criu may take to roll back once its socket has been closed.
const killAfter = 10 * time.Second

// Options of a Worker. The zero value starts the criu which is in PATH, here.
type Options struct {
	Path   string // of the binary; empty: Find decides. Not used when Prefix is set
	Prefix string // a tree with usr/sbin/criu and its libraries: started by its own dynamic linker, by whatever path it is reached

	Env        []string // empty: PATH, HOME only
	Dir        string   // working directory, looked up after Thread
	ExtraFiles []*os.File
	Thread     func() error // runs on the thread that then forks (setns …); the thread is thrown away
	Log        *slog.Logger
	Stderr     io.Writer // gets what criu printed, when it has ended
}

// A Worker is a running `criu swrk`.
type Worker struct {
	log    *slog.Logger
	cmd    *exec.Cmd
	sock   *os.File
	stderr *os.File // memfd
	out    io.Writer

	waited  chan struct{} // closed when criu has been reaped
	waitErr error

	mu   sync.Mutex
	used bool
}

// PreloadEnv names a library that is loaded into criu: for tests on machines without CAP_SYS_RESOURCE (lab/testdata/criu-shim.c).
const PreloadEnv = "LAZYMIG_CRIU_PRELOAD"

// Start starts criu, which then waits for its one request. ctx bounds the start only.
func Start(ctx context.Context, o Options) (*Worker, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start criu: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Path == "" && o.Prefix == "" {
		var err error
		if o.Path, o.Prefix, err = Find(""); err != nil {
			return nil, err
		}
	}
	argv := Argv(o.Path, o.Prefix, "swrk", strconv.Itoa(rpcFD))

	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start criu: make socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "criu-rpc-peer")
	defer theirs.Close()
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, fmt.Errorf("start criu: %w", err)
	}
	sock := os.NewFile(uintptr(fds[0]), "criu-rpc") // non-blocking: a deadline or Close wakes a read
	mfd, err := unix.MemfdCreate("criu-log", unix.MFD_CLOEXEC)
	if err != nil {
		sock.Close()
		return nil, fmt.Errorf("start criu: make log: %w", err)
	}
	stderr := os.NewFile(uintptr(mfd), "criu-log")
	if _, err := unix.FcntlInt(stderr.Fd(), unix.F_SETFL, unix.O_APPEND); err != nil {
		sock.Close()
		stderr.Close()
		return nil, fmt.Errorf("start criu: make log: %w", err)
	}

	cmd := &exec.Cmd{Path: argv[0], Args: argv, Env: o.Env, Dir: o.Dir, Stdout: stderr, Stderr: stderr}
	if len(cmd.Env) == 0 {
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}
	}
	if p := os.Getenv(PreloadEnv); p != "" {
		cmd.Env = append(cmd.Env, "LD_PRELOAD="+p)
	}
	cmd.ExtraFiles = append([]*os.File{theirs}, o.ExtraFiles...)
	if err := startOnThread(cmd, o.Thread); err != nil {
		sock.Close()
		stderr.Close()
		return nil, fmt.Errorf("start criu (%s): %w", argv[0], err)
	}
	w := &Worker{log: o.Log, cmd: cmd, sock: sock, stderr: stderr, out: o.Stderr, waited: make(chan struct{})}
	go w.reap() // ends when criu does; Wait waits for it
	o.Log.Debug("criu started", "pid", cmd.Process.Pid, "argv", argv)
	return w, nil
}

// startOnThread forks from a thread that setup may have changed; such a thread never runs other goroutines again.
func startOnThread(cmd *exec.Cmd, setup func() error) error {
	if setup == nil {
		return cmd.Start()
	}
	var err error
	OnThrowawayThread(func() {
		if err = setup(); err != nil {
			err = fmt.Errorf("prepare thread: %w", err)
			return
		}
		err = cmd.Start()
	})
	return err
}

func (w *Worker) reap() {
	err := w.cmd.Wait()
	if w.out != nil {
		if _, cerr := io.Copy(w.out, io.NewSectionReader(w.stderr, 0, 1<<30)); cerr != nil {
			w.log.Warn("copy criu's output", "err", cerr)
		}
	}
	w.waitErr = err
	close(w.waited)
}

// PID of criu, as this process sees it.
func (w *Worker) PID() int { return w.cmd.Process.Pid }

// Done is closed when criu has ended.
func (w *Worker) Done() <-chan struct{} { return w.waited }

// Wait waits until criu has ended and says how: nil is exit code 0. May be called more than once.
func (w *Worker) Wait() error {
	<-w.waited
	if w.waitErr != nil {
		return fmt.Errorf("criu ended: %w%s", w.waitErr, w.lastLines())
	}
	return nil
}

// Kill kills criu at once and waits for it. Tasks it has seized go on, or stay frozen where their cgroup is; what it
// was just changing in them stays changed. Prefer refusing a notification or Close.
func (w *Worker) Kill() error {
	err := w.cmd.Process.Kill()
	<-w.waited
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill criu: %w", err)
	}
	return nil
}

// Close ends criu: it sees its socket closed, rolls back what it does, and is killed if that takes longer than 10 s.
// May be called more than once.
func (w *Worker) Close() error {
	w.sock.Close()
	var err error
	select {
	case <-w.waited:
	case <-time.After(killAfter):
		err = w.Kill()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stderr.Close()
	return err
}

// lastLines returns the end of what criu printed, for an error's text.
func (w *Worker) lastLines() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	const keep = 2048
	fi, err := w.stderr.Stat()
	if err != nil || fi.Size() == 0 {
		return ""
	}
	b := make([]byte, min(keep, fi.Size()))
	n, err := w.stderr.ReadAt(b, fi.Size()-int64(len(b)))
	if err != nil && n == 0 {
		return ""
	}
	s := strings.TrimSpace(string(b[:n]))
	if int64(n) < fi.Size() { // starts in the middle of a line
		if _, rest, ok := strings.Cut(s, "\n"); ok {
			s = rest
		}
	}
	lines := strings.Split(s, "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return "; criu says: " + strings.Join(lines, " | ")
}

// Argv is the command line that starts criu with args.
func Argv(path, prefix string, args ...string) []string {
	if prefix == "" {
		return append([]string{path}, args...)
	}
	return setup.Prefix(prefix).Argv(args...)
}
