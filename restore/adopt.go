package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
)

// Found is where a capsule stands whose agent has died.
type Found struct {
	Resumed *Resumed // nil: it has not been let go
	Drained *Event
	Exited  *Event // its root task has ended; others of the tree live
}

type againAnswer struct {
	Released bool
	Resumed  resumedAnswer
	Drained  *Event
	Exited   *Event
}

// again tells the next agent where the capsule stands. Events follow on the same socket.
func (g *guardian) again(m message) {
	g.mu.Lock()
	a := againAnswer{Drained: g.drained, Exited: g.exited}
	var files []*os.File
	if r := g.restore; r.pidfd != nil {
		a.Released, a.Resumed = true, resumedAnswer{At: r.at, PID: r.root}
		files = append(files, r.pidfd)
	}
	g.mu.Unlock()
	g.answer(m, nil, a, files...)
}

// ErrNoGuardian says that nobody answers where a guardian would.
var ErrNoGuardian = errors.New("there is no guardian")

// Adopt takes over a capsule that has outlived its agent: Options with ID and Dir as they were. Finish and Release may be called again. Its handler
// is not taken over: StartHandler starts another, and the one before ends.
func Adopt(ctx context.Context, o Options) (*Capsule, Found, error) {
	o.defaults()
	ctl, pid, err := fdpass.Reach(o.Dir, SocketName)
	if err != nil {
		return nil, Found{}, fmt.Errorf("take over capsule: %w: %w", ErrNoGuardian, err)
	}
	fd, err := unix.PidfdOpen(pid, 0) // it lives, as its socket does
	if err != nil {
		ctl.Close()
		return nil, Found{}, fmt.Errorf("take over capsule: open guardian %d: %w", pid, err)
	}
	parent, mount, err := cgroupParent(o.Free)
	if err != nil {
		ctl.Close()
		unix.Close(fd)
		return nil, Found{}, fmt.Errorf("take over capsule: %w", err)
	}
	c := &Capsule{
		o: o, log: o.Log, calls: make(map[uint64]chan answer), events: newEventQueue(), dead: make(chan struct{}), silent: make(chan struct{}), ctl: ctl,
		proc:   &guardianProcess{pid: pid, pidfd: os.NewFile(uintptr(fd), "guardian")},
		groups: &cgroups{mount: mount, top: filepath.Join(parent, groupName(o.ID))},
	}
	c.readers.Add(1)
	go c.read()
	f, err := c.found(ctx)
	if err != nil {
		c.Abandon()
		return nil, Found{}, fmt.Errorf("take over capsule: %w", err)
	}
	return c, f, nil
}

func (c *Capsule) found(ctx context.Context) (f Found, err error) {
	m, files, err := c.call(ctx, opAgain, nil)
	if err != nil {
		return f, err
	}
	defer fdpass.CloseAll(files)
	var a againAnswer
	if err := json.Unmarshal(m.Body, &a); err != nil {
		return f, err
	}
	f.Drained, f.Exited = a.Drained, a.Exited
	if !a.Released || len(files) != 1 {
		return f, nil
	}
	f.Resumed = &Resumed{At: time.Unix(0, a.Resumed.At)}
	if f.Resumed.PID, err = pidOf(files[0]); err != nil {
		c.log.Info("the root task has ended", "err", err) // others may live
	}
	return f, nil
}

// Outlive is called when the question is on disk: from then on the held tree, and later the running one, stays when this process ends, for Adopt.
func (c *Capsule) Outlive(ctx context.Context) error {
	if _, _, err := c.call(ctx, opOutlive, nil); err != nil {
		return fmt.Errorf("make capsule independent: %w", err)
	}
	return nil
}

// Abandon lets go of a capsule that lives on, for another agent.
func (c *Capsule) Abandon() {
	c.mu.Lock()
	c.closed, c.abandoned = true, true
	c.mu.Unlock()
	c.ctl.Close()
	c.readers.Wait()
	c.events.close()
	if c.groups != nil {
		c.groups.closeMount()
	}
}

// guardianProcess is the guardian, which this agent or one before it has had started.
type guardianProcess struct {
	pid   int
	part  *parts.Process // nil: another agent has started it
	pidfd *os.File       // else
}

func (p *guardianProcess) kill() error {
	var err error
	if p.part != nil {
		err = p.part.Kill()
	} else if err = unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0); errors.Is(err, unix.ESRCH) {
		err = os.ErrProcessDone
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// wait waits for the end, and tells how one ended that this process has had started.
func (p *guardianProcess) wait() error {
	if p.part != nil {
		return p.part.Wait()
	}
	for {
		fds := []unix.PollFd{{Fd: int32(p.pidfd.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
