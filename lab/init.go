package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// InitArg is the hidden subcommand that a program hands to [InitMain].
const InitArg = "lab-process"

// What InitMain can be.
const (
	argInit = "lab-init" // also the name of a host's PID 1
	argExec = "lab-exec"
	argHold = "lab-hold"
)

// MaybeInit runs [InitMain] and exits, if this process was started for that.
// Call it first in main and in TestMain.
func MaybeInit() {
	if len(os.Args) > 1 && os.Args[1] == InitArg {
		os.Exit(InitMain(os.Args[2:]))
	}
}

// InitMain is a process of the lab, by the arguments behind [InitArg]: the init
// of a host, the stand-in of a command, or the holder of a lab in the
// background. It returns the exit code.
func InitMain(args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case argInit:
			return initMain(args[1:])
		case argExec:
			return execMain(args[1:])
		case argHold:
			return holdMain(args[1:])
		}
	}
	fmt.Fprintln(os.Stderr, InitArg+" is started by the lab only")
	return 2
}

// initMain is PID 1 of a host.
func initMain(args []string) int {
	report := os.NewFile(fdReport, "report")
	if err := setUp(args); err != nil {
		fmt.Fprintln(report, strings.ReplaceAll(err.Error(), "\n", " "))
		return 1
	}
	r := newReaper()
	go r.run()
	s := &server{reaper: r}
	go s.accept(os.NewFile(fdListener, "listener"))
	fmt.Fprintln(report, "ok")
	report.Close()

	// The lifeline never has data; its end is ours.
	lifeline := os.NewFile(fdLifeline, "lifeline")
	_, _ = io.Copy(io.Discard, lifeline)
	s.off.Store(true)
	powerOff()
	return 0
}

func setUp(args []string) error {
	if len(args) != 1 || os.Getpid() != 1 {
		return fmt.Errorf("start %s: only as PID 1 of a new PID namespace", argInit)
	}
	var c hostConfig
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		return fmt.Errorf("decode host: %w", err)
	}
	// Whatever else was inherited (a shell's pipe) must not reach a process that
	// shall be migrated: the pipe's other end is not in its tree.
	if err := keepStrays(); err != nil {
		return err
	}
	unix.Umask(0o022)
	// The main thread's name is what ps shows: a look for left-over processes
	// shall not find the host itself.
	if err := os.WriteFile("/proc/thread-self/comm", []byte(argInit), 0); err != nil {
		return fmt.Errorf("set name: %w", err)
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := mountAll(c); err != nil {
		return err
	}
	// The next PID is one above; commands of A and B get different ones.
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(c.FirstPid)), 0); err != nil {
		return fmt.Errorf("set first PID: %w", err)
	}
	return nil
}

// keepStrays marks all descriptors of this process close-on-exec. What Go opens
// is so anyway, and what a child shall get is passed to it by name.
func keepStrays() error {
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors: %w", err)
	}
	return nil
}
