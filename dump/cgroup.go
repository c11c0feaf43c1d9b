package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is the cgroup v2 tree: a mount that is there, or one of our own that nobody sees.
type hierarchy struct {
	root *os.File
	base string // the path which the root has in /proc/PID/cgroup
}

func openHierarchy() (*hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup v2: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		f, tail := strings.Fields(line), ""
		if _, after, ok := strings.Cut(line, " - "); ok {
			tail = after
		}
		if len(f) < 6 || !strings.HasPrefix(tail, "cgroup2 ") || !strings.HasPrefix(f[5], "rw") {
			continue
		}
		root, err := os.Open(unescape(f[4]))
		if err != nil {
			continue
		}
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(root.Fd()), &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			root.Close() // something is mounted over it
			continue
		}
		return &hierarchy{root: root, base: unescape(f[3])}, nil
	}
	return mountHierarchy()
}

// mountHierarchy mounts cgroup v2 where no path leads; the freezer needs no controller.
func mountHierarchy() (*hierarchy, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup v2: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("mount cgroup v2: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup v2: %w", err)
	}
	return &hierarchy{root: os.NewFile(uintptr(fd), "cgroup2"), base: "/"}, nil
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// of is the path, relative to the root, of the cgroup that a process is in.
func (h *hierarchy) of(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", fmt.Errorf("read cgroup of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(b)) {
		p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		p = strings.TrimSuffix(p, " (deleted)")
		if p != h.base && h.base != "/" {
			rest, ok := strings.CutPrefix(p, h.base+"/")
			if !ok {
				return "", fmt.Errorf("cgroup %s of process %d lies outside of the mounted %s: %w", p, pid, h.base, unix.EXDEV)
			}
			p = rest
		} else if h.base != "/" {
			p = "/"
		}
		if p == "/.." || strings.HasPrefix(p, "/../") {
			return "", fmt.Errorf("cgroup %s of process %d lies outside of this namespace: %w", p, pid, unix.EXDEV)
		}
		return strings.TrimPrefix(path.Clean("/"+p), "/"), nil
	}
	return "", fmt.Errorf("process %d is in no cgroup v2: %w", pid, unix.ENOENT)
}

func (h *hierarchy) open(cg, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(h.root.Fd()), path.Join(".", cg, name), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path.Join("cgroup:", cg, name), Err: err}
	}
	return os.NewFile(uintptr(fd), path.Join("cgroup:", cg, name)), nil
}

func (h *hierarchy) read(cg, name string) ([]byte, error) {
	f, err := h.open(cg, name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(f)
	return b.Bytes(), err
}

func (h *hierarchy) write(cg, name, value string) error {
	f, err := h.open(cg, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// makeFor makes a cgroup for a tree below the one it is in, home, so that its limits go on to hold and whoever
// manages it still counts it as populated; at the top where that one cannot have children.
func (h *hierarchy) makeFor(home, name string) (cg string, err error) {
	for _, parent := range slices.Compact([]string{home, ""}) {
		cg = path.Join(parent, name)
		if err = unix.Mkdirat(int(h.root.Fd()), cg, 0o755); err != nil {
			err = fmt.Errorf("make cgroup %s: %w", cg, err)
			continue
		}
		var t []byte
		if t, err = h.read(cg, "cgroup.type"); err == nil && string(bytes.TrimSpace(t)) == "domain" {
			return cg, nil
		}
		if err == nil {
			err = fmt.Errorf("make cgroup %s: its type is %q: %w", cg, bytes.TrimSpace(t), unix.EOPNOTSUPP)
		}
		_ = h.remove(cg)
	}
	return "", err
}

func (h *hierarchy) remove(cg string) error {
	err := unix.Unlinkat(int(h.root.Fd()), cg, unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove cgroup %s: %w", cg, err)
	}
	return nil
}

// move moves a whole process.
func (h *hierarchy) move(pid int, cg string) error {
	if err := h.write(cg, "cgroup.procs", strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("move process %d: %w", pid, err)
	}
	return nil
}

func (h *hierarchy) procs(cg string) ([]int, error) {
	b, err := h.read(cg, "cgroup.procs")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var list []int
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", cg, err)
		}
		list = append(list, pid)
	}
	return list, nil
}

// event reads one line of cgroup.events.
func (h *hierarchy) event(cg, key string) (bool, error) {
	b, err := h.read(cg, "cgroup.events")
	if err != nil {
		return false, err
	}
	return eventIs(b, key), nil
}

func eventIs(b []byte, key string) bool {
	return bytes.Contains(b, []byte(key+" 1\n"))
}

// errTimeout says that an event did not come in time.
var errTimeout = errors.New("not in time")

// await waits until a line of cgroup.events has the value; the kernel wakes a poll at each change.
func (h *hierarchy) await(ctx context.Context, cg, key string, want bool, limit time.Duration) error {
	f, err := h.open(cg, "cgroup.events", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	deadline := time.Now().Add(limit)
	b := make([]byte, 256)
	for {
		n, err := unix.Pread(int(f.Fd()), b, 0)
		if err != nil {
			return fmt.Errorf("read events of cgroup %s: %w", cg, err)
		}
		if eventIs(b[:n], key) == want {
			return nil
		}
		left := time.Until(deadline)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if left <= 0 {
			return fmt.Errorf("cgroup %s: %s is not %v after %v: %w", cg, key, want, limit, errTimeout)
		}
		// A slice at most: ctx has no descriptor to poll.
		slice := min(left, 50*time.Millisecond)
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(slice/time.Millisecond)+1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for cgroup %s: %w", cg, err)
		}
	}
}

// freeze freezes and waits; not frozen in time is an error, and the caller thaws.
func (h *hierarchy) freeze(ctx context.Context, cg string, limit time.Duration) error {
	if err := h.write(cg, "cgroup.freeze", "1"); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	if err := h.await(ctx, cg, "frozen", true, limit); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	return nil
}

func (h *hierarchy) thaw(cg string) error {
	if err := h.write(cg, "cgroup.freeze", "0"); err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}
