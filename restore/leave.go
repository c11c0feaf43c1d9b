package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/restore/detach"
)

// Tasks lists the processes of the tree, by their PIDs in this process's namespace.
func (c *Capsule) Tasks() ([]int, error) {
	f, err := c.TreeProcs()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	pids, err := detach.Tasks(f)
	if err != nil {
		return nil, fmt.Errorf("list processes of the tree: %w", err)
	}
	return pids, nil
}

// TreeProcs opens cgroup.procs of the tree.
func (c *Capsule) TreeProcs() (*os.File, error) {
	f, err := os.Open(filepath.Join(c.groups.dir(treeGroup), "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("list processes of the tree: %w", err)
	}
	return f, nil
}

// HelperGroup opens the cgroup of the capsule's helpers: what is in it does not end with the agent's unit.
func (c *Capsule) HelperGroup() (*os.File, error) {
	f, err := os.Open(c.groups.dir(guardianGroup))
	if err != nil {
		return nil, fmt.Errorf("open cgroup of the capsule's helpers: %w", err)
	}
	return f, nil
}

// Leave ends what the tree does not need when all its memory is here: the guardian becomes a bare init, the handler ends. Done is closed when
// the last process of the capsule has ended.
func (c *Capsule) Leave(ctx context.Context) error {
	c.mu.Lock()
	c.leaving = true
	c.mu.Unlock()
	if _, _, err := c.call(ctx, opLeave, nil); err != nil {
		c.mu.Lock()
		c.leaving = false
		c.mu.Unlock()
		return fmt.Errorf("leave the tree: %w", err)
	}
	select {
	case <-c.silent: // its descriptors are closed: it has begun the other program, or has ended
	case <-ctx.Done():
		return fmt.Errorf("leave the tree: %w", context.Cause(ctx))
	}
	c.mu.Lock()
	h := c.handler
	c.mu.Unlock()
	if h != nil {
		h.stop()
	}
	exe, err := c.o.Free.Program(c.proc.pid)
	if err == nil && !strings.HasPrefix(exe, "/memfd:"+bareInitName) {
		return fmt.Errorf("leave the tree: its PID 1 is %s", exe)
	}
	return nil // if it has ended, so has the tree
}

// confineGuardian is when the tree runs and criu has ended: nobody descends from the guardian any more who would inherit this. It fills memory, reaps, and at
// last becomes the bare init.
func confineGuardian() error {
	if err := confine.Refuse(append(confine.Forks(), append(confine.Machine(), confine.Any(unix.SYS_SETNS)...)...)...); err != nil {
		return fmt.Errorf("confine guardian: %w", err)
	}
	return nil
}

// leave answers, and makes PID 1 the bare init.
func (g *guardian) leave(m message) {
	f, err := g.mayLeave()
	g.answer(m, err, nil)
	if err != nil {
		return
	}
	g.finishCollapse()
	g.hub.close()
	if err := g.endHolder(); err != nil {
		g.log.Error("end holder of descriptors", "err", err)
	}
	err = unix.CloseRange(0, ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		err = unix.Exec(byPID1(f), []string{bareInitName}, nil)
	}
	g.log.Error("become the bare init", "err", err)
	select {} // the tree goes on with this one as its PID 1
}

func (g *guardian) mayLeave() (*os.File, error) {
	e := g.hub.getEngine()
	if e == nil {
		return nil, errNotRestored
	}
	select {
	case <-e.Drained():
	default:
		return nil, errors.New("pages are missing")
	}
	if n := g.ends(); n > 0 {
		return nil, fmt.Errorf("%d standard streams of the tree are carried", n)
	}
	return openBareInit()
}

// endHolder lets go of the second process with these descriptors, see holder.go: no userfaultfd is left among them.
func (g *guardian) endHolder() error {
	if err := unix.Kill(int(g.holder), unix.SIGKILL); err != nil {
		return err
	}
	for {
		if _, err := unix.Wait4(int(g.holder), nil, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
