package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
)

// criu probes the kernel for 30–40 ms at each start unless /run is a tmpfs which holds what it found before. So a tmpfs
// covers /run from Start until criu says pre-restore: by then it has read its cache and touched nothing of the tree's, whose
// /run this is. A criu that waits for its request is started ahead, too.
const kdatCover = "/run"

// nice of what a stopped tree or a waiting thread waits for. Where it is not allowed things just take longer.
const nice = -15

// hurry raises the priority of this process's threads; new ones inherit it.
func hurry() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
		}
	}
}

// warmUp is not needed for a restore, only for its speed: what fails is undone and told to the log.
func (g *guardian) warmUp() {
	if err := unix.Mount("tmpfs", kdatCover, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700,size=1m"); err != nil {
		g.log.Info("cover /run for criu's cache", "err", err)
	} else {
		g.covered = true
		argv := criu.Argv("", byPID1(g.dirs.prefix), "check", "--feature", "uffd")
		cmd := &exec.Cmd{Path: argv[0], Args: argv, Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}}
		if out, err := cmd.CombinedOutput(); err != nil {
			g.log.Info("fill criu's cache", "err", err, "out", string(out))
		}
	}
	w, err := g.startCriu(nil)
	if err != nil {
		g.log.Info("start criu ahead", "err", err)
		return
	}
	g.warm = w
}

// uncover gives /run back before anything of the tree is restored. This has to work.
func (g *guardian) uncover() error {
	if !g.covered {
		return nil
	}
	g.covered = false
	if err := unix.Unmount(kdatCover, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("uncover %s: %w", kdatCover, err)
	}
	return nil
}

// startCriu starts a criu that waits for its request, in the tree's cgroup.
func (g *guardian) startCriu(inherit []*os.File) (*criu.Worker, error) {
	first := func() error { // criu gives each task its own priority back
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
		return nil
	}
	w, err := criu.Start(context.Background(), criu.Options{
		Prefix: byPID1(g.dirs.prefix), ExtraFiles: inherit, Dir: "/", Log: g.log, Thread: first,
	})
	if err != nil {
		return nil, err
	}
	if err := writeIn(g.group, "cgroup.procs", strconv.Itoa(w.PID())); err != nil {
		return nil, errors.Join(fmt.Errorf("move criu to the tree's cgroup: %w", err), w.Close())
	}
	return w, nil
}
