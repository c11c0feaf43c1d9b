package preflight

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

var victimPath string

func TestMain(m *testing.M) {
	// Descriptors that the tests' own caller left open would be inherited, and shared with that caller.
	fds, _ := numbers("/proc/self/fd")
	for _, fd := range fds {
		if fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	kerneltest.Main(withVictim{m})
}

// withVictim compiles the victim before the tests run.
type withVictim struct{ *testing.M }

func (m withVictim) Run() int {
	dir, err := os.MkdirTemp("", "preflight")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	victimPath = filepath.Join(dir, "victim")
	if b, err := exec.Command("gcc", "-O1", "-Wall", "-o", victimPath, "testdata/victim.c", "-lrt", "-lpthread").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "compile victim: %v\n%s", err, b)
		return 1
	}
	return m.M.Run()
}

// victim is a running test process.
type victim struct {
	cmd  *exec.Cmd
	pid  int
	said []string // lines before "ready"
	in   io.WriteCloser
	out  io.Reader
}

// start runs a command that prints "ready", in a session of its own, and ends it with the test.
func start(t *testing.T, change func(*exec.Cmd), name string, args ...string) *victim {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = struct{ io.Writer }{os.Stderr} // a pipe: a file would be of a mount outside, see mount_outside
	if change != nil {
		change(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		if cmd.SysProcAttr.Setsid {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its children are of its group
		}
		_, _ = io.Copy(io.Discard, out) // until the last child that holds it has ended
		_ = cmd.Wait()
	})
	v := &victim{cmd: cmd, pid: cmd.Process.Pid, in: in, out: out}
	v.said = await(t, out)
	return v
}

// await reads lines until "ready".
func await(t *testing.T, out io.Reader) []string {
	t.Helper()
	type answer struct {
		lines []string
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadString('\n')
			line = strings.TrimSpace(line)
			if err != nil || line == "ready" || strings.HasPrefix(line, "absent") {
				if line != "ready" {
					a.err = fmt.Errorf("it said %q: %w", line, cmp.Or(err, io.ErrUnexpectedEOF))
				}
				done <- a
				return
			}
			a.lines = append(a.lines, line)
		}
	}()
	select {
	case a := <-done:
		if a.err != nil {
			t.Fatal(a.err)
		}
		return a.lines
	case <-time.After(2 * time.Minute):
		t.Fatal("the process did not get ready")
	}
	return nil
}

// mode starts the victim in one of its modes.
func mode(t *testing.T, args ...string) *victim {
	t.Helper()
	v := start(t, nil, victimPath, args...)
	for _, l := range v.said { // what no process's end removes
		var id int
		if n, _ := fmt.Sscanf(l, "semaphores %d", &id); n == 1 {
			t.Cleanup(func() { removeSysV(t, syscall.SYS_SEMCTL, uintptr(id), 0, 0) })
		}
		if n, _ := fmt.Sscanf(l, "queue %d", &id); n == 1 {
			t.Cleanup(func() { removeSysV(t, syscall.SYS_MSGCTL, uintptr(id), 0, 0) })
		}
	}
	return v
}

// removeSysV is IPC_RMID, 0, of include/uapi/linux/ipc.h; semctl has it as its third argument, msgctl as its second.
func removeSysV(t *testing.T, call, id, second, third uintptr) {
	if _, _, errno := syscall.Syscall(call, id, second, third); errno != 0 {
		t.Errorf("remove System V object %d: %v", id, errno)
	}
}

// child is the pid of the child that a "shared" mode printed.
func (v *victim) child(t *testing.T) int {
	t.Helper()
	for _, l := range v.said {
		if s, ok := strings.CutPrefix(l, "child "); ok {
			if pid, err := strconv.Atoi(s); err == nil {
				return pid
			}
		}
	}
	t.Fatalf("it named no child: %q", v.said)
	return 0
}

func look(t *testing.T, opt Options) *Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := Process(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// find returns the finding with a code, or fails.
func find(t *testing.T, r *Report, code string, level Level) Finding {
	t.Helper()
	for _, f := range r.Findings {
		if f.Code == code {
			if f.Level != level {
				t.Fatalf("%s is at level %v, want %v", f, f.Level, level)
			}
			return f
		}
	}
	t.Fatalf("no finding %s in %v", code, r.Findings)
	return Finding{}
}

type execCmd = exec.Cmd

func itoa(n int) string { return strconv.Itoa(n) }

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	kerneltest.Eventually(t, what, ok)
}
