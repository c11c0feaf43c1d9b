// Package parts starts the processes that lazymig consists of on the target. Each is a hidden subcommand of this program, in a session or process group of its
// own, and begins with descriptors from 3 on: a socket to who wants it, and what else it needs.
//
// The table of kinds says all that may be asked for. So who starts parts for somebody else (Serve, in a process that has kept its privileges) need not
// trust who asks (Client, in one that has given them up and starts nothing): neither program, arguments, environment nor namespaces are his to choose.
package parts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/criu"
)

// Names of the parts: their hidden subcommands.
const (
	Guardian   = "guardian"
	Handler    = "handler"
	FuseKeeper = "fuse-keeper"
	Carrier    = "carrier"
	Switch     = "switch"
)

// kind is what a part begins with.
type kind struct {
	args       []string // after its name
	dir        bool     // then a directory
	files      int      // descriptors
	cgroup     bool     // it has to be put into one
	namespaces uintptr  // clone(2)
	group      bool     // a process group, not a session of its own
	env        []string // names of all that it has of the environment; nil: all
}

var kinds = map[string]kind{
	Guardian: {
		args: []string{"window"}, files: 2, cgroup: true, env: []string{"PATH", criu.PreloadEnv, confine.LoudEnv},
		namespaces: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	},
	Handler:    {files: 2, env: []string{"PATH", confine.LoudEnv}},
	FuseKeeper: {dir: true, files: 1, group: true}, // of keeper and daemon
	Carrier:    {dir: true, files: 1},
	Switch:     {files: 1, cgroup: true},
}

// Spec is a part that is wanted.
type Spec struct {
	Name   string
	Dir    string     // of the migration, for parts that need it
	Files  []*os.File // stay the caller's
	Cgroup *os.File   // a directory; stays the caller's
}

var errSpec = errors.New("no such part, or not what it begins with")

// kind checks a Spec.
func (s Spec) kind() (kind, error) {
	k, ok := kinds[s.Name]
	if !ok || k.dir != (s.Dir != "") || k.dir && !filepath.IsAbs(s.Dir) || len(s.Files) != k.files || k.cgroup != (s.Cgroup != nil) {
		return k, fmt.Errorf("start %q with %d files: %w", s.Name, len(s.Files), errSpec)
	}
	if !k.cgroup {
		return k, nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.Cgroup.Fd()), &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return k, errors.Join(fmt.Errorf("start %s in what is no cgroup v2: %w", s.Name, errSpec), err)
	}
	return k, nil
}

// Process is a part that has been started.
type Process struct {
	PID   int
	mu    sync.Mutex
	pidfd *os.File // nil when it has been waited for
	wait  func() error
}

func newProcess(pid int, pidfd *os.File, wait func() error) *Process {
	p := &Process{PID: pid, pidfd: pidfd}
	p.wait = sync.OnceValue(func() error {
		err := wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pidfd.Close()
		p.pidfd = nil
		return err
	})
	return p
}

// Kill kills it, if it has not ended.
func (p *Process) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd == nil {
		return nil
	}
	if err := unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}

// Wait waits for its end and tells how it ended; nil: without an error. It has to be called once at least, and may be more often.
func (p *Process) Wait() error { return p.wait() }

// PidFD makes one more descriptor of the process: it names its process group even when it has ended.
func (p *Process) PidFD() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd == nil {
		return -1, fmt.Errorf("process %d has ended: %w", p.PID, os.ErrProcessDone)
	}
	return unix.FcntlInt(p.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 3)
}

// Here starts parts as children of this process.
type Here struct {
	Exe    string   // the program; empty: this one, whatever has become of its file
	Stderr *os.File // default: this process's
}

// Start starts one.
func (h Here) Start(s Spec) (*Process, error) {
	k, err := s.kind()
	if err != nil {
		return nil, err
	}
	name := h.Exe
	if name == "" {
		h.Exe = "/proc/self/exe"
		if name, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("start %s: %w", s.Name, err)
		}
	}
	if h.Stderr == nil {
		h.Stderr = os.Stderr
	}
	args := append([]string{name, s.Name}, k.args...)
	if k.dir {
		args = append(args, s.Dir)
	}
	pidfd := -1
	cmd := &exec.Cmd{
		Path: h.Exe, Args: args, Dir: "/", Stdout: h.Stderr, Stderr: h.Stderr, ExtraFiles: s.Files,
		// A terminal's signals are not its business.
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: k.namespaces, Setsid: !k.group, Setpgid: k.group, PidFD: &pidfd},
	}
	if k.env != nil {
		cmd.Env = []string{}
		for _, n := range k.env {
			cmd.Env = append(cmd.Env, n+"="+os.Getenv(n))
		}
	}
	if k.cgroup {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(s.Cgroup.Fd())
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	return newProcess(cmd.Process.Pid, os.NewFile(uintptr(pidfd), "pidfd"), cmd.Wait), nil
}
