package migrate

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/criu"
)

// GuestArg is the hidden subcommand that runs GuestMain.
const GuestArg = "guest"

// guest is a process in the PID namespace of a tree that came here by an earlier migration. While it lives the tree's capsule does
// not end (restore.awaitGuest), and so the root of the tree, which is served on, stays mounted.
type guest struct {
	cmd  *exec.Cmd // nil: another process has started it
	life *os.File  // its input
}

// startGuest starts one if pid is in another PID namespace than we are; else it returns nil.
func startGuest(exe string, pid int) (*guest, error) {
	mine, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("look at own PID namespace: %w", err)
	}
	path := fmt.Sprintf("/proc/%d/ns/pid", pid)
	if its, err := os.Readlink(path); err != nil || its == mine {
		return nil, err
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open PID namespace of the tree: %w", err)
	}
	defer ns.Close()
	g := &guest{cmd: exec.Command(exe, GuestArg)}
	g.cmd.Dir = "/"
	in, life, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start guest of capsule: %w", err)
	}
	defer in.Close()
	g.cmd.Stdin, g.life = in, life
	criu.OnThrowawayThread(func() {
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err == nil {
			err = g.cmd.Start()
		}
	})
	if err != nil {
		g.life.Close()
		return nil, fmt.Errorf("start guest of capsule: %w", err)
	}
	return g, nil
}

// close ends the guest: the capsule may end, too.
func (g *guest) close() {
	if g == nil {
		return
	}
	g.life.Close()
	if g.cmd != nil {
		_ = g.cmd.Wait() // it ends when its input does
	}
}

// GuestMain lives until its input ends.
func GuestMain() error {
	_ = confine.Refuse(confine.Never()...) // nobody would read why not, and it must live
	for {
		_, err := io.Copy(io.Discard, os.Stdin)
		if err == nil {
			return nil
		}
		time.Sleep(time.Second) //nolint:forbidigo // can't fail on a pipe; if it does the capsule had better live on
	}
}
