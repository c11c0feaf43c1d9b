package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// StateDir is where the lab of `lazymig lab up` lives.
const StateDir = "/run/lazymig-lab"

// ErrNotUp says that there is no lab in the background.
var ErrNotUp = errors.New("no lab is up (`lazymig lab up` makes one)")

// state is what `lab up` leaves for `lab exec` and `lab down`.
type state struct {
	Pid   int    // of the holder
	Start string // its start time, which tells it from a later process with its PID
	Hosts []hostState
}

type hostState struct {
	Name, Addr, Sock string
	Pid              int
}

// Background starts a lab that stays until [Stop]: in StateDir, held by a
// process of its own.
func Background(ctx context.Context, o Options) error {
	if o.Self == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find own executable: %w", err)
		}
		o.Self = self
	}
	if o.Dir == "" {
		o.Dir = StateDir
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return fmt.Errorf("make lab folder: %w", err)
	}
	o.Log = nil
	conf, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode options: %w", err)
	}
	out, err := os.Create(filepath.Join(o.Dir, "hold.log"))
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	defer out.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make report pipe: %w", err)
	}
	defer r.Close()
	defer w.Close()
	cmd := exec.Command(o.Self, InitArg, argHold, string(conf))
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start lab: %w", err)
	}
	w.Close()
	h := &Host{}
	if err := h.awaitReport(ctx, r); err != nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		return fmt.Errorf("start lab: %w", err)
	}
	return cmd.Process.Release()
}

// holdMain holds a lab until SIGTERM. It reports on descriptor 3.
func holdMain(args []string) int {
	report := os.NewFile(3, "report")
	unix.CloseOnExec(3)
	fail := func(err error) int {
		fmt.Fprintln(report, strings.ReplaceAll(err.Error(), "\n", " "))
		return 1
	}
	if len(args) != 1 {
		return fail(unix.EINVAL)
	}
	var o Options
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		return fail(fmt.Errorf("decode options: %w", err))
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	lock, err := os.OpenFile(filepath.Join(o.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(fmt.Errorf("open lock: %w", err))
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fail(fmt.Errorf("a lab is up already: %w", err))
	}
	l, err := Up(ctx, o)
	if err != nil {
		return fail(err)
	}
	err = l.save(o.Dir)
	if err == nil {
		fmt.Fprintln(report, "ok")
		report.Close()
		<-ctx.Done()
	}
	err = errors.Join(err, l.Down())
	for _, f := range []string{"state.json", "hold.log", "lock"} {
		_ = os.Remove(filepath.Join(o.Dir, f))
	}
	_ = os.Remove(o.Dir) // stays if something else lies in it
	if err != nil {
		return fail(err)
	}
	return 0
}

func (l *Lab) save(dir string) error {
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	s := state{Pid: os.Getpid(), Start: start}
	for _, h := range []*Host{l.A, l.B} {
		s.Hosts = append(s.Hosts, hostState{Name: h.Name, Addr: h.Addr, Sock: h.sock, Pid: h.Pid})
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	tmp := filepath.Join(dir, "state.tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, "state.json")); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

func load(dir string) (state, error) {
	var s state
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return s, ErrNotUp
	}
	if err != nil {
		return s, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("decode state: %w", err)
	}
	if start, err := startTime(s.Pid); err != nil || start != s.Start {
		return s, ErrNotUp // its holder died, and the hosts with it
	}
	return s, nil
}

// Attach finds the lab in the background; dir is empty for [StateDir]. Its
// hosts run commands; Down and Kill of them do nothing.
func Attach(dir string) (*Lab, error) {
	if dir == "" {
		dir = StateDir
	}
	s, err := load(dir)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own executable: %w", err)
	}
	if err := keepStrays(); err != nil {
		return nil, err
	}
	l := &Lab{dir: dir}
	l.down.Do(func() {})
	for _, hs := range s.Hosts {
		h := &Host{Name: hs.Name, Addr: hs.Addr, Pid: hs.Pid, sock: hs.Sock, self: self}
		switch hs.Name {
		case "A":
			l.A = h
		case "B":
			l.B = h
		}
	}
	if l.A == nil || l.B == nil {
		return nil, fmt.Errorf("read state: a host is missing: %w", ErrNotUp)
	}
	return l, nil
}

// Stop ends the lab in the background and waits until it is gone.
func Stop(ctx context.Context, dir string) error {
	if dir == "" {
		dir = StateDir
	}
	s, err := load(dir)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(s.Pid, 0)
	if err != nil {
		return fmt.Errorf("find holder: %w", err)
	}
	defer unix.Close(fd)
	if start, err := startTime(s.Pid); err != nil || start != s.Start {
		return ErrNotUp
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return fmt.Errorf("stop lab: %w", err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for holder: %w", err)
		}
		if n > 0 {
			// Reap it if this is the process that started it.
			err := unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED, nil)
			if err != nil && !errors.Is(err, unix.ECHILD) {
				return fmt.Errorf("reap holder: %w", err)
			}
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for holder: %w", err)
		}
	}
}

// Shell replaces this process by a command in the host that has this terminal;
// for people. [Host.Command] gives a session of its own instead.
func (h *Host) Shell(args ...string) error {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return fmt.Errorf("find nsenter: %w", err)
	}
	argv := []string{
		"nsenter", "--target", fmt.Sprint(h.Pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--time", "--root", "--wd=/", "--",
	}
	env := append(Env(), "TERM="+os.Getenv("TERM"))
	return fmt.Errorf("run nsenter: %w", unix.Exec(nsenter, append(argv, args...), env))
}

// startTime is field 22 of /proc/PID/stat.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", fmt.Errorf("look at process: %w", err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return "", fmt.Errorf("parse /proc/%d/stat: %w", pid, unix.EINVAL)
	}
	return f[19], nil
}

// ProjectShare returns what a host needs of a checkout at root: its programs,
// and a CRIU that [setup] has put into its cache.
func ProjectShare(root string) []string {
	var have []string
	for _, p := range []string{filepath.Join(root, "bin"), filepath.Join(root, ".cache", "criu"), "/var/lib/lazymig/criu"} {
		if _, err := os.Stat(p); err == nil {
			have = append(have, p)
		}
	}
	return have
}
