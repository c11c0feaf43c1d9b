package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// reaper is the only one that waits for children in init: orphans come to PID
// 1 as well, so every wait is for any child.
type reaper struct {
	// mu is held while a child is made, so that its end is not seen before it
	// is in waiting.
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
	sigchld chan os.Signal
}

func newReaper() *reaper {
	r := &reaper{waiting: map[int]chan syscall.WaitStatus{}, sigchld: make(chan os.Signal, 1)}
	signal.Notify(r.sigchld, unix.SIGCHLD)
	return r
}

// run reaps as long as the process lives. Signals merge, so each one means
// "reap all".
func (r *reaper) run() {
	for range r.sigchld {
		r.mu.Lock()
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			if c, ok := r.waiting[pid]; ok {
				delete(r.waiting, pid)
				c <- ws // has room for one
			}
		}
		r.mu.Unlock()
	}
}

// start makes a child; its status comes on the channel.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	c := make(chan syscall.WaitStatus, 1)
	r.waiting[pid] = c
	return pid, c, nil
}

// server runs commands for whoever reaches the socket.
type server struct {
	reaper *reaper
	off    atomic.Bool // the host loses its power: nobody is told anything any more
}

func (s *server) accept(listener *os.File) {
	for {
		fd, _, err := unix.Accept4(int(listener.Fd()), unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "accept:", err)
			return
		}
		conn, err := fdpass.New(os.NewFile(uintptr(fd), "command"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			continue
		}
		go s.serve(conn)
	}
}

// serve runs one command. Its goroutines end with the connection and the
// command.
func (s *server) serve(conn *fdpass.Socket) {
	defer conn.Close()
	buf := make([]byte, fdpass.MaxMessage)
	n, files, err := conn.Recv(buf)
	if err != nil {
		return
	}
	var req request
	err = json.Unmarshal(buf[:n], &req)
	var pid int
	var ended <-chan syscall.WaitStatus
	if err == nil {
		pid, ended, err = s.start(req, files)
	}
	fdpass.CloseAll(files)
	if err != nil {
		ev := event{Error: err.Error()}
		_ = errors.As(err, &ev.Errno)
		send(conn, ev)
		return
	}
	if !send(conn, event{Pid: pid}) && !req.Detach {
		killGroup(pid)
		return
	}
	hungUp := make(chan struct{})
	go func() {
		defer close(hungUp)
		buf := make([]byte, 256)
		for {
			n, files, err := conn.Recv(buf)
			fdpass.CloseAll(files)
			if err != nil {
				return
			}
			var m signalMsg
			if json.Unmarshal(buf[:n], &m) == nil {
				_ = unix.Kill(pid, m.Signal)
			}
		}
	}()
	select {
	case ws := <-ended:
		if !s.off.Load() {
			send(conn, event{Status: &ws})
		}
	case <-hungUp:
		if !req.Detach {
			killGroup(pid)
		}
	}
	conn.Close()
	<-hungUp
}

func send(conn *fdpass.Socket, ev event) bool {
	msg, err := json.Marshal(ev)
	return err == nil && conn.Send(msg) == nil
}

// killGroup kills a command and what it has left in its process group. A PID
// that was reaped a moment ago cannot be another process yet unless PIDs went
// round; the lab takes that risk.
func killGroup(pid int) { _ = unix.Kill(-pid, unix.SIGKILL) }

func (s *server) start(req request, files []*os.File) (int, <-chan syscall.WaitStatus, error) {
	if len(req.Args) == 0 || len(req.Files) > fdpass.MaxFiles {
		return 0, nil, unix.EINVAL
	}
	dir := req.Dir
	if dir == "" {
		dir = "/"
	}
	path, err := lookPath(req.Args[0], req.Env, dir)
	if err != nil {
		return 0, nil, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("open null device: %w", err)
	}
	defer null.Close()
	fds := make([]uintptr, 0, len(req.Files))
	for _, passed := range req.Files {
		f := null
		if passed {
			if len(files) == 0 {
				return 0, nil, unix.EBADMSG
			}
			f, files = files[0], files[1:]
		}
		fds = append(fds, f.Fd())
	}
	sys := &syscall.SysProcAttr{Setsid: true}
	if req.Uid != 0 || req.Gid != 0 {
		sys.Credential = &syscall.Credential{Uid: req.Uid, Gid: req.Gid}
	}
	return s.reaper.start(path, req.Args, &syscall.ProcAttr{Dir: dir, Env: req.Env, Files: fds, Sys: sys})
}

// lookPath finds a program as a shell with that environment would.
func lookPath(name string, env []string, dir string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var path string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		p := filepath.Join(d, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("find %s in PATH: %w", name, unix.ENOENT)
}
