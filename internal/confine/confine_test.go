package confine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

const (
	roleEnv = "LAZYMIG_TEST_CONFINE"
	dirEnv  = "LAZYMIG_TEST_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "drop":
		err := Drop(unix.CAP_SYS_NICE)
		if err == nil {
			err = unix.Exec("/proc/self/exe", os.Args, []string{roleEnv + "=filter"})
		}
		fmt.Println(err)
		os.Exit(1)
	case "filter":
		if err := confined(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	case "stage", "never":
		if err := staged(os.Getenv(dirEnv)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	case "loud":
		fmt.Println(Refuse(Never()...))
		_ = unix.Chroot("/")
		fmt.Println("goes on")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// confined is the child: it does what it may, tries what it must not, and prints its threads' state.
func confined() error {
	if err := Syscalls(Runtime(os.Getpid())...); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range 20 { // threads of the runtime, preempted
		wg.Go(func() {
			runtime.LockOSThread()
			for i := range 1 << 20 {
				_ = i
			}
		})
	}
	wg.Wait()
	runtime.GC()
	if _, err := os.ReadFile("/proc/self/status"); err != nil {
		return fmt.Errorf("read a file: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	go func() { _, _ = w.WriteString("x"); w.Close() }()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("read a pipe: %w", err)
	}
	for what, try := range map[string]func() error{
		"write a file": func() error { return os.WriteFile("/dev/null", nil, 0o600) },
		"make a file":  func() error { _, err := os.CreateTemp("", ""); return err },
		"remove":       func() error { return os.Remove("/nonexistent") },
		"connect":      func() error { _, err := net.Dial("udp", "127.0.0.1:9"); return err },
		"execute":      func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"fork":         func() error { return exec.Command("/bin/true").Run() },
		"signal":       func() error { return unix.Kill(os.Getppid(), 0) },
		"trace":        func() error { return unix.PtraceAttach(os.Getppid()) },
		"mount":        func() error { return unix.Mount("", "/", "", unix.MS_PRIVATE, "") },
	} {
		if err := try(); !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s: %w", what, errors.Join(errors.New("not refused"), err))
		}
	}
	all, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return err
	}
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err == nil {
			fmt.Printf("thread\n%s", b)
		}
	}
	return nil
}

func TestConfined(t *testing.T) {
	kerneltest.Need(t, kerneltest.Root)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{roleEnv + "=drop"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	threads := strings.Split(string(out), "thread\n")[1:]
	if len(threads) < 2 {
		t.Fatalf("only %d threads", len(threads))
	}
	for _, s := range threads {
		for _, want := range []string{"CapEff:\t0000000000800000\n", "CapPrm:\t0000000000800000\n", "CapBnd:\t0000000000800000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
			if !strings.Contains(s, want) {
				t.Errorf("%q is not in\n%s", want, s)
			}
		}
	}
}

// staged is a process that may change one directory: first by Landlock and a list of what is allowed, then by one of what is not.
func staged(dir string) error {
	if err := Stage(Limits{Keep: []int{unix.CAP_CHOWN}, Writable: []string{dir, "/nonexistent", "/dev/null"}}); err != nil {
		return err
	}
	if err := Stage(Limits{Keep: []int{unix.CAP_CHOWN, unix.CAP_FOWNER}}); err != nil { // a child that may have more
		return err
	}
	if err := Stage(Limits{}); err == nil {
		return errors.New("a mark that lies is believed")
	}
	rules := append(Files(), Runtime(os.Getpid())...)
	if os.Getenv(roleEnv) == "never" {
		if err := Refuse(Never()...); err != nil {
			return err
		}
	} else if err := Syscalls(rules...); err != nil {
		return err
	}
	for what, do := range map[string]func() error{
		"write a file":     func() error { return os.WriteFile(dir+"/a", []byte("a"), 0o600) },
		"make a directory": func() error { return os.MkdirAll(dir+"/sub/sub", 0o700) },
		"make one more and move a file": func() error {
			return errors.Join(os.MkdirAll(dir+"/to", 0o700), os.WriteFile(dir+"/b", nil, 0o600), os.Rename(dir+"/b", dir+"/to/b"))
		},
		"write to /dev/null": func() error { return os.WriteFile("/dev/null", nil, 0o600) },
		"read":               func() error { _, err := os.ReadFile("/proc/self/maps"); return err },
		"change a limit":     func() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 512, Max: 512}) },
		"get a umask of its own": func() error {
			if os.Getenv(roleEnv) != "never" {
				return nil
			}
			return unix.Unshare(unix.CLONE_FS)
		},
	} {
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	outside := filepath.Dir(dir) + "/outside"
	for what, try := range map[string]func() error{
		"write outside": func() error { return os.WriteFile(outside, nil, 0o600) },
		"make outside":  func() error { return os.Mkdir(outside, 0o700) },
		"move out":      func() error { return os.Rename(dir+"/a", outside) },
		"write to /dev": func() error { return os.WriteFile("/dev/zero", nil, 0) },
		"fork":          func() error { return exec.Command("/bin/true").Run() },
		"mount":         func() error { return unix.Mount("none", dir, "tmpfs", 0, "") },
		"mounts":        func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		"trace":         func() error { return unix.PtraceAttach(os.Getppid()) },
	} {
		if err := try(); err == nil {
			return fmt.Errorf("%s: not refused", what)
		}
	}
	return nil
}

// child runs this program in a role.
func child(t *testing.T, env ...string) (string, error) {
	t.Helper()
	kerneltest.Need(t, kerneltest.Root)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestStage(t *testing.T) {
	for _, role := range []string{"stage", "never"} {
		dir := t.TempDir() + "/mine"
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := child(t, roleEnv+"="+role, dirEnv+"="+dir); err != nil {
			t.Errorf("%s: %v\n%s", role, err, out)
		}
	}
}

// TestLoud: a system call that is refused tells who made it.
func TestLoud(t *testing.T) {
	out, err := child(t, roleEnv+"=loud", LoudEnv+"=1")
	if err == nil || !strings.Contains(out, "SIGSYS") || !strings.Contains(out, "unix.Chroot") || strings.Contains(out, "goes on") {
		t.Errorf("%v\n%s", err, out)
	}
}
