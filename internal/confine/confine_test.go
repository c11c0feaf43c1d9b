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

const stageEnv = "LAZYMIG_TEST_CONFINE"

func TestMain(m *testing.M) {
	switch os.Getenv(stageEnv) {
	case "drop":
		err := Drop(unix.CAP_SYS_NICE)
		if err == nil {
			err = unix.Exec("/proc/self/exe", os.Args, []string{stageEnv + "=filter"})
		}
		fmt.Println(err)
		os.Exit(1)
	case "filter":
		if err := confined(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
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
	cmd.Env = []string{stageEnv + "=drop"}
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
