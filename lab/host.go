package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one host of a lab.
type Host struct {
	Name string // A or B
	Addr string // its IPv4 address on the link
	Pid  int    // its init, as the machine counts

	self string
	sock string

	mu       sync.Mutex
	lifeline *os.File      // closing it ends the host
	gone     chan struct{} // closed when unshare(1) has been reaped; nil for an attached host
}

// hostConfig is what init gets to know, as JSON in its arguments.
type hostConfig struct {
	Name     string
	Hostname string
	FirstPid int // the first command's PID is a little above
	OwnRoot  bool
	Offset   int      // seconds that the clocks are ahead
	Root     string   // mount point of B's root
	Disk     string   // directory of the disk-backed folders, or empty
	Share    []string // paths to show
}

// Descriptors that init inherits, in the order of startHost's ExtraFiles.
const (
	fdListener = 3 + iota
	fdLifeline
	fdReport
)

// reportPatience ends a hang of the set-up; it measures nothing.
const reportPatience = 2 * time.Minute

func startHost(ctx context.Context, o Options, dir string, c hostConfig) (_ *Host, err error) {
	h := &Host{Name: c.Name, self: o.Self, sock: filepath.Join(dir, c.Name+".sock")}
	c.Share = o.Share
	c.Root = filepath.Join(dir, c.Name+".root")
	if err := os.MkdirAll(c.Root, 0o755); err != nil {
		return nil, fmt.Errorf("make mount point: %w", err)
	}
	if o.Disk {
		c.Disk = filepath.Join(dir, c.Name+".disk")
	}
	conf, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode host: %w", err)
	}
	listener, err := listen(h.sock)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make lifeline: %w", err)
	}
	defer lifeR.Close()
	repR, repW, err := os.Pipe()
	if err != nil {
		lifeW.Close()
		return nil, fmt.Errorf("make report pipe: %w", err)
	}
	defer repR.Close()
	defer repW.Close()
	logName := filepath.Join(dir, c.Name+".log")
	logFile, err := os.Create(logName)
	if err != nil {
		lifeW.Close()
		return nil, fmt.Errorf("make log: %w", err)
	}
	defer logFile.Close()

	// unshare(1), because a time namespace wants its offsets before the first
	// process is in it, and a fork that is not Go's vfork on Linux < 6.3.
	args := []string{"--mount", "--pid", "--net", "--uts", "--ipc", "--time", "--fork", "--kill-child"}
	if c.Offset != 0 {
		args = append(args, "--monotonic", strconv.Itoa(c.Offset), "--boottime", strconv.Itoa(c.Offset))
	}
	args = append(args, "--", o.Self, InitArg, argInit, string(conf))
	cmd := exec.Command("unshare", args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{listener, lifeR, repW}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is not for the hosts
	if err := cmd.Start(); err != nil {
		lifeW.Close()
		return nil, fmt.Errorf("start host %s: %w", c.Name, err)
	}
	h.lifeline, h.gone = lifeW, make(chan struct{})
	go func() {
		_ = cmd.Wait() // how init ended does not matter
		close(h.gone)
	}()
	repW.Close()

	if err := h.awaitReport(ctx, repR); err != nil {
		_ = h.Kill()
		return nil, fmt.Errorf("start host %s: %w\n%s", c.Name, err, tailOf(logName))
	}
	if h.Pid, err = onlyChild(cmd.Process.Pid); err != nil {
		_ = h.Kill()
		return nil, fmt.Errorf("start host %s: %w", c.Name, err)
	}
	o.Log.Debug("host is up", "host", c.Name, "pid", h.Pid)
	return h, nil
}

// awaitReport waits until init says "ok" or why not; a dead init closes the pipe.
func (h *Host) awaitReport(ctx context.Context, r *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })
	defer stop()
	_ = r.SetReadDeadline(time.Now().Add(reportPatience))
	if err := ctx.Err(); err != nil {
		return err
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		return errors.Join(fmt.Errorf("wait for init: %w", err), ctx.Err())
	}
	if line = strings.TrimSpace(line); line != "ok" {
		return errors.New(line)
	}
	return nil
}

// onlyChild returns the one child of pid.
func onlyChild(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, fmt.Errorf("find init: %w", err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("find init: %w", err)
	}
	return child, nil
}

// Kill ends the host at once, as a power cut would. It waits until all its
// processes are dead, and may be called twice.
func (h *Host) Kill() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone == nil {
		return nil // attached: the lab belongs to another process
	}
	if h.lifeline != nil {
		h.lifeline.Close()
		h.lifeline = nil
	}
	select {
	case <-h.gone:
		return nil
	case <-time.After(reportPatience):
		return fmt.Errorf("kill host %s: init %d is still there after %v", h.Name, h.Pid, reportPatience)
	}
}

// Path returns a path by which the machine reaches a file of the host. Absolute
// symbolic links on the way would lead into the machine's files.
func (h *Host) Path(p string) string {
	return filepath.Join("/proc", strconv.Itoa(h.Pid), "root", p)
}

// OuterPid returns how the machine counts the process that is pid in the host.
func (h *Host) OuterPid(pid int) (int, error) {
	var want unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/pid", h.Pid), &want); err != nil {
		return 0, fmt.Errorf("look at host %s: %w", h.Name, err)
	}
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range ents {
		outer, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/pid", outer), &st) != nil || st.Ino != want.Ino || st.Dev != want.Dev {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", outer))
		if err != nil {
			continue
		}
		_, after, ok := bytes.Cut(b, []byte("\nNSpid:"))
		if !ok {
			continue
		}
		line, _, _ := bytes.Cut(after, []byte("\n"))
		f := bytes.Fields(line)
		if n := len(f); n > 0 && string(f[n-1]) == strconv.Itoa(pid) {
			return outer, nil
		}
	}
	return 0, fmt.Errorf("find process %d of host %s: %w", pid, h.Name, unix.ESRCH)
}
