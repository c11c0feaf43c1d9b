package kerneltest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const isolatedEnv = "LAZYMIG_TEST_ISOLATED"

func isolated() bool { return os.Getenv(isolatedEnv) != "" }

// Main runs a package's tests in a mount namespace and a cgroup of their own, so that no mount, process or cgroup
// can be left on the machine, and [Leaks] sees all that the tests made and nothing else:
//
//	func TestMain(m *testing.M) { kerneltest.Main(m) }
//
// A package whose test binary has hidden subcommands runs them before; one that has something to prepare does
// it in a Run of its own. Without root the tests just run.
func Main(m interface{ Run() int }) {
	if isolated() || os.Geteuid() != 0 {
		dropFUSE()
		os.Exit(m.Run())
	}
	os.Exit(isolate())
}

// isolate runs this program again. The namespace must hold for every thread, and a Go program has several
// before main: so in a child.
func isolate() int {
	keepStray()
	runtime.LockOSThread() // Pdeathsig counts the death of the thread that forks
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), isolatedEnv+"=1", fmt.Sprintf("LAZYMIG_TEST_PARENT=%d", os.Getpid()))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// Go makes the new namespace's mounts private when Unshareflags has NEWNS.
		Unshareflags: unix.CLONE_NEWNS,
		Pdeathsig:    unix.SIGKILL,
	}
	if root, err := cgroup2Mount(); err == nil {
		// Two levels: what a program makes beside its own cgroup is inside as well.
		top := filepath.Join(root, fmt.Sprintf("kerneltest-%d", os.Getpid()))
		dir, err := makeRunCgroup(top)
		if err != nil {
			fmt.Fprintln(os.Stderr, "make cgroup for the tests:", err)
			return 1
		}
		defer dir.Close()
		defer removeCgroup(top)
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	err := cmd.Run()
	if err == nil {
		return 0
	}
	if ee := (*exec.ExitError)(nil); errors.As(err, &ee) && ee.ExitCode() > 0 {
		return ee.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "run tests by themselves:", err)
	return 1
}

// keepStray keeps descriptors that a careless shell left open from the tests: their programs would inherit them.
func keepStray() {
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range ents {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 2 {
			unix.CloseOnExec(n)
		}
	}
}

// runCgroup is the test process' own cgroup inside that of the run.
const runCgroup = "run"

func makeRunCgroup(top string) (*os.File, error) {
	removeCgroup(top) // a PID comes again
	if err := os.MkdirAll(filepath.Join(top, runCgroup), 0o755); err != nil {
		return nil, err
	}
	return os.Open(filepath.Join(top, runCgroup))
}

// dropFUSE unmounts what other tests had mounted when our mount namespace was made: its copies would keep
// their file systems alive when they unmount them.
func dropFUSE() {
	if !isolated() {
		return
	}
	all, err := readMounts()
	if err != nil {
		return
	}
	for _, m := range all {
		if strings.HasPrefix(m.fstype, "fuse.") && strings.HasPrefix(m.point, filepath.Join(os.TempDir(), "Test")) {
			_ = unix.Unmount(m.point, unix.MNT_DETACH)
		}
	}
}
