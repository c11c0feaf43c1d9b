package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

func TestCommands(t *testing.T) {
	l := up(t, Options{})
	h := l.A

	t.Run("exit status", func(t *testing.T) {
		var ee *exec.ExitError
		if err := h.Command(t.Context(), "sh", "-c", "exit 7").Run(); !errors.As(err, &ee) || ee.ExitCode() != 7 {
			t.Errorf("exit 7: %v", err)
		}
		err := h.Command(t.Context(), "sh", "-c", "kill -9 $$").Run()
		if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
			t.Errorf("kill -9: %v", err)
		}
		if err := h.Command(t.Context(), "no-such-program").Run(); !errors.As(err, &ee) || ee.ExitCode() != 127 {
			t.Errorf("no such program: %v", err)
		}
	})
	t.Run("standard files", func(t *testing.T) {
		cmd := h.Command(t.Context(), "sh", "-c", "cat; echo err >&2; readlink /proc/self/fd/0")
		cmd.Stdin = strings.NewReader("in\n")
		var out, err bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &err
		if e := cmd.Run(); e != nil || !strings.HasPrefix(out.String(), "in\n") || err.String() != "err\n" {
			t.Errorf("%v: %q, %q", e, out.String(), err.String())
		}
		r, w, e := os.Pipe()
		if e != nil {
			t.Fatal(e)
		}
		defer r.Close()
		cmd = h.Command(t.Context(), "sh", "-c", "echo three >&3")
		cmd.ExtraFiles = []*os.File{w}
		if e := cmd.Run(); e != nil {
			t.Error(e)
		}
		w.Close()
		if line, _ := bufio.NewReader(r).ReadString('\n'); line != "three\n" {
			t.Errorf("descriptor 3 brought %q", line)
		}
	})
	// A process that shall be migrated may have no descriptor whose mount is
	// not in the host: CRIU could not name it.
	t.Run("null device is the host's", func(t *testing.T) {
		p := spawnOn(t, h, Spawn{Args: []string{"sleep", "1000"}})
		for fd := range 3 {
			info := sh(t, h, fmt.Sprintf("grep mnt_id /proc/%d/fdinfo/%d", p.Pid, fd))
			id := strings.Fields(info)[1]
			if out := sh(t, h, "awk '{print $1}' /proc/self/mountinfo | grep -cx "+id); out != "1" {
				t.Errorf("descriptor %d is on mount %s, which the host has not", fd, id)
			}
		}
	})
	t.Run("no stray descriptors", func(t *testing.T) {
		p := spawnOn(t, h, Spawn{Args: []string{"sleep", "1000"}})
		if out := sh(t, h, fmt.Sprintf("ls /proc/%d/fd | tr '\n' ' '", p.Pid)); out != "0 1 2" {
			t.Errorf("descriptors %s", out)
		}
	})
	t.Run("session and parent", func(t *testing.T) {
		p := spawnOn(t, h, Spawn{Args: []string{"sleep", "1000"}})
		f := strings.Fields(sh(t, h, fmt.Sprintf("cat /proc/%d/stat", p.Pid)))
		if ppid, sid := f[3], f[5]; ppid != "1" || sid != strconv.Itoa(p.Pid) {
			t.Errorf("parent %s, session %s of %d", ppid, sid, p.Pid)
		}
		outer, err := h.OuterPid(p.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", outer)); err != nil || string(b) != "sleep\n" {
			t.Errorf("outer PID %d is %q, %v", outer, b, err)
		}
	})
	t.Run("signal", func(t *testing.T) {
		p := spawnOn(t, h, Spawn{Args: []string{"sleep", "1000"}})
		if err := p.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if ws, err := p.Wait(patience(t)); err != nil || !ws.Signaled() || ws.Signal() != unix.SIGUSR1 {
			t.Errorf("status %v, %v", ws, err)
		}
		cmd := h.Command(t.Context(), "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var ee *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &ee) || ee.ExitCode() != 9 {
			t.Errorf("the trap did not run: %v", err)
		}
	})
	t.Run("user", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		p := spawnOn(t, h, Spawn{Args: []string{"id", "-u"}, Uid: 65534, Gid: 65534, Files: []*os.File{nil, w}})
		w.Close()
		if _, err := p.Wait(patience(t)); err != nil {
			t.Fatal(err)
		}
		if line, _ := bufio.NewReader(r).ReadString('\n'); line != "65534\n" {
			t.Errorf("uid %q", line)
		}
	})
	// The stand-in is killed: what it stands for dies too.
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := h.Command(ctx, "sh", "-c", "echo $$; exec sleep 1000")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		pid := strings.TrimSpace(line)
		cancel()
		_ = cmd.Wait()
		kerneltest.Eventually(t, "death of process "+pid, func() bool {
			_, err := os.Stat(h.Path("/proc/" + pid))
			return err != nil
		})
	})
	t.Run("detached", func(t *testing.T) {
		p, err := h.Spawn(Spawn{Args: []string{"sleep", "1000"}, Detach: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		// Its own connection is served after the close was: one more command, then look.
		if out := sh(t, h, fmt.Sprintf("cat /proc/%d/comm; kill -9 %d", p.Pid, p.Pid)); out != "sleep" {
			t.Errorf("detached process: %q", out)
		}
	})
	t.Run("orphans are reaped", func(t *testing.T) {
		pid := sh(t, h, "(sleep 0.01 & echo $!) & wait")
		kerneltest.Eventually(t, "reaping of orphan "+pid, func() bool {
			_, err := os.Stat(h.Path("/proc/" + pid))
			return err != nil
		})
	})
	t.Run("host dies", func(t *testing.T) {
		p := spawnOn(t, l.B, Spawn{Args: []string{"sleep", "1000"}})
		outer, err := l.B.OuterPid(p.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.B.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(outer, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process of a dead host: %v", err)
		}
		if _, err := p.Wait(patience(t)); !errors.Is(err, ErrLost) {
			t.Errorf("wait: %v", err)
		}
	})
}

func spawnOn(t *testing.T, h *Host, s Spawn) *Proc {
	t.Helper()
	p, err := h.Spawn(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}
