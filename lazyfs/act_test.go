package lazyfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// actEnv makes this binary do one thing as another process (other credentials, mapped files) and exit.
const actEnv = "LAZYFS_TEST_ACT"

// runAct runs act(mode, args) in another process with credentials of its own.
func runAct(t *testing.T, uid, gid uint32, groups []uint32, mode string, args ...string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), actEnv+"="+mode)
	cmd.Dir = "/"
	if uid != 0 || gid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", mode, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// program is act as a process that goes on until it is told to stop.
type program struct {
	cmd   *exec.Cmd
	in    io.Closer
	lines chan string
}

func startAct(t *testing.T, mode string, args ...string) *program {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), actEnv+"="+mode)
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	p := &program{cmd: cmd, in: in, lines: make(chan string)}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended, or the test has failed
		for range p.lines {
		}
	})
	return p
}

// line waits for a sign of life.
func (p *program) line(t *testing.T) {
	t.Helper()
	select {
	case l, ok := <-p.lines:
		if !ok || l != "goes on" {
			t.Fatalf("program says %q", l)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("program does not go on")
	}
}

func (p *program) stop() { _ = p.in.Close() }

func act(mode string, args []string) error {
	switch mode {
	case "churn":
		return actChurn(args[0])
	case "mmap":
		return actMmap(args[0])
	case "create": // file: made with umask 027
		unix.Umask(0o27)
		fd, err := unix.Open(args[0], unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o666)
		if err != nil {
			return err
		}
		if err := unix.Mkdir(args[0]+".dir", 0o777); err != nil {
			return err
		}
		if err := unix.Symlink("x", args[0]+".link"); err != nil {
			return err
		}
		_, err = unix.Write(fd, []byte("mine"))
		return err
	case "errno": // what an open for reading says
		fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		fmt.Println(unix.ErrnoName(asErrno(err)))
		return nil
	case "write": // over what is there
		f, err := os.OpenFile(args[0], os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write([]byte("X"))
		return errors.Join(err, f.Close())
	}
	return fmt.Errorf("unknown %s %q", mode, args)
}

func asErrno(err error) unix.Errno {
	var n unix.Errno
	_ = errors.As(err, &n)
	return n
}

// actMmap changes a file of 3 pages by a shared mapping and looks at it through a private one.
func actMmap(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	shared, err := unix.Mmap(int(f.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	private, err := unix.Mmap(int(f.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	if !bytes.Equal(shared, bytes.Repeat([]byte("a"), 3*4096)) {
		return errors.New("mapping shows other bytes than the file has")
	}
	private[5] = 'p' // its own copy
	copy(shared[4096:], "shared")
	if string(private[4096:4102]) != "shared" {
		return errors.New("private mapping does not see the shared one")
	}
	if err := unix.Msync(shared, unix.MS_SYNC); err != nil {
		return err
	}
	copy(shared[8192:], "late") // left to munmap and close
	return errors.Join(unix.Munmap(shared), unix.Munmap(private), f.Close())
}
