package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/restore/detach"
)

// The agent reads what the network brings, so it gives up its privileges (ConfineAgent). The tree must not descend from such a process: it would inherit that. Nor
// may the switch, who puts off seccomp filters of the tree and so must have none. So the agent starts nothing: the starter does, which has been
// started before, keeps all privileges, reads nothing from the network, and does no more than what is in this file. It ends with the agent, and the agent
// with it: what goes on without both is taken up by the next agent.

// StarterArg is the hidden subcommand that runs StarterMain.
const StarterArg = "starter"

// free is what the agent does by its starter, or does itself if it has none.
type free interface {
	restore.Free
	facts(ctx context.Context) preflight.Facts
	device(pid int) (uint64, error)
	look(o lookBody, procs *os.File) ([]string, error)
}

// lookBody are the options of detach.Look.
type lookBody struct {
	MountNS int
	Dev     uint64
	Remote  []string
}

// freeHere does all in this process.
type freeHere struct {
	restore.Here
	stateDir, criu string
}

func (f freeHere) facts(ctx context.Context) preflight.Facts {
	return preflight.LocalFacts(ctx, preflight.HostOptions{CRIUPath: f.criu, StateDir: f.stateDir})
}

// device is that of a process's root.
func (freeHere) device(pid int) (uint64, error) {
	st, err := detach.Peek(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		return 0, fmt.Errorf("look at root of the tree: %w", err)
	}
	return st.Dev, nil
}

// look says what keeps a tree from being moved.
func (freeHere) look(o lookBody, procs *os.File) ([]string, error) {
	return detach.Look(detach.Options{Tasks: func() ([]int, error) { return detach.Tasks(procs) }, MountNS: o.MountNS, Dev: o.Dev, Remote: o.Remote})
}

// Operations of the starter, beside starting parts.
const (
	starterAbort   = "abort FUSE"
	starterCgroup  = "mount cgroup"
	starterProgram = "program"
	starterFacts   = "facts"
	starterDevice  = "device of root"
	starterLook    = "look at tree"
)

var errStarter = fmt.Errorf("the agent asks for what the starter does not do: %w", unix.EPERM)

// ops are all that the starter does but to start parts. Each checks what it is asked for: the agent may be in another's hands.
func (f freeHere) ops() map[string]parts.Op {
	return map[string]parts.Op{
		starterAbort: func(in func(any) error, _ []*os.File) (any, *os.File, error) {
			var minors []string
			if err := in(&minors); err != nil {
				return nil, nil, err
			}
			for _, m := range minors {
				if _, err := strconv.ParseUint(m, 10, 32); err != nil {
					return nil, nil, fmt.Errorf("FUSE connection %q: %w", m, errStarter)
				}
			}
			return nil, nil, f.AbortFuse(minors)
		},
		starterCgroup: func(func(any) error, []*os.File) (any, *os.File, error) {
			m, err := f.MountCgroup()
			return nil, m, err
		},
		starterProgram: func(in func(any) error, _ []*os.File) (any, *os.File, error) {
			var pid int
			if err := in(&pid); err != nil {
				return nil, nil, err
			}
			path, err := f.Program(pid)
			return path, nil, err
		},
		starterFacts: func(func(any) error, []*os.File) (any, *os.File, error) {
			return f.facts(context.Background()), nil, nil // what it runs has its own deadlines
		},
		starterDevice: func(in func(any) error, _ []*os.File) (any, *os.File, error) {
			var pid int
			if err := in(&pid); err != nil {
				return nil, nil, err
			}
			dev, err := f.device(pid)
			return dev, nil, err
		},
		starterLook: func(in func(any) error, files []*os.File) (any, *os.File, error) {
			var o lookBody
			if err := in(&o); err != nil {
				return nil, nil, err
			}
			if len(files) != 1 {
				return nil, nil, errStarter
			}
			stuck, err := f.look(o, files[0])
			return stuck, nil, err
		},
	}
}

// StarterMain is the process: os.Args[2] is the agent's state directory, os.Args[3] the program CRIU.
func StarterMain(log *slog.Logger) error {
	if len(os.Args) != 4 {
		return errors.New("the starter is started by the agent, not by hand")
	}
	// Caught, not ignored: ignored ones would be inherited by the tree. It ends with the agent, which has to end its migrations before.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	unix.CloseOnExec(3)
	sock, err := fdpass.New(os.NewFile(3, "agent"))
	if err != nil {
		return err
	}
	log = log.With("process", StarterArg)
	f := freeHere{stateDir: os.Args[2], criu: os.Args[3]}
	s := parts.Server{Dir: f.stateDir, Ops: f.ops(), Failed: func(op string, err error) { log.Warn("for the agent", "what", op, "err", err) }}
	return s.Serve(sock)
}
