package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/preflight"
)

// Starter is the agent's end of its starter.
type Starter struct {
	*parts.Client
	proc *os.Process
}

// starterEnv tells the agent, which has begun anew, the descriptor of its starter's socket and the starter's PID.
const starterEnv = "LAZYMIG_STARTER"

// ConfineAgent starts the starter and takes from this process what an agent does not need, for which the process begins anew with the same arguments: only then it returns. If
// the starter dies later, so does this process, at once: it could not even take away what it has begun.
func ConfineAgent(stateDir, criu string, log *slog.Logger) (*Starter, error) {
	v := os.Getenv(starterEnv)
	if v == "" {
		err := startStarter(stateDir, criu)
		if err == nil {
			err = confine.Stage(agentLimits())
		}
		if err == nil {
			err = fmt.Errorf("%s is not set: %w", starterEnv, unix.EINVAL)
		}
		return nil, err
	}
	var fd, pid int
	if _, err := fmt.Sscan(v, &fd, &pid); err != nil {
		return nil, fmt.Errorf("read %s: %w", starterEnv, err)
	}
	if err := errors.Join(os.Unsetenv(starterEnv), confine.Stage(agentLimits())); err != nil {
		return nil, err
	}
	if err := confine.Refuse(agentRefuses()...); err != nil {
		return nil, err
	}
	_ = os.WriteFile("/proc/self/comm", []byte("lazymig"), 0) // a nicer name than "exe"
	unix.CloseOnExec(fd)
	sock, err := fdpass.New(os.NewFile(uintptr(fd), "starter"))
	if err != nil {
		return nil, err
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		sock.Close()
		return nil, fmt.Errorf("find starter: %w", err)
	}
	return &Starter{proc: proc, Client: parts.NewClient(sock, func() {
		log.Error("the agent ends: the process that starts others for it has died", "state", "trees that run here go on, and what was granted is kept", "next", "start the agent again: it takes up what is there")
		os.Exit(1)
	})}, nil
}

// startStarter leaves word of it in the environment, for this process when it has begun anew.
func startStarter(stateDir, criu string) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make socket pair: %w", err)
	}
	peer := os.NewFile(uintptr(fds[1]), "agent")
	defer peer.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{exe, StarterArg, stateDir, criu}, Dir: "/", Stdout: os.Stderr, Stderr: os.Stderr, ExtraFiles: []*os.File{peer},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}, // a terminal's signals are the agent's business
	}
	if err := cmd.Start(); err != nil {
		unix.Close(fds[0])
		return fmt.Errorf("start starter: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("keep socket of the starter: %w", err)
	}
	return os.Setenv(starterEnv, fmt.Sprint(fds[0], " ", cmd.Process.Pid))
}

// Close ends the starter.
func (s *Starter) Close() {
	s.Client.Close()
	_, _ = s.proc.Wait() // how it ended does not matter
}

// AbortFuse is restore.Free's.
func (s *Starter) AbortFuse(minors []string) error {
	if len(minors) == 0 {
		return nil
	}
	return s.Call(starterAbort, minors, nil)
}

// MountCgroup is restore.Free's.
func (s *Starter) MountCgroup() (*os.File, error) { return s.CallFile(starterCgroup, nil) }

// Program is restore.Free's.
func (s *Starter) Program(pid int) (path string, err error) {
	err = s.Call(starterProgram, pid, &path)
	return path, err
}

func (s *Starter) facts(context.Context) (f preflight.Facts) {
	if err := s.Call(starterFacts, nil, &f); err != nil {
		f.CRIUError = err.Error()
	}
	return f
}

func (s *Starter) device(pid int) (dev uint64, err error) {
	err = s.Call(starterDevice, pid, &dev)
	return dev, err
}

func (s *Starter) look(o lookBody, procs *os.File) (stuck []string, err error) {
	err = s.Call(starterLook, o, &stuck, procs)
	return stuck, err
}
