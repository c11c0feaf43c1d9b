package restore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits are what the tree's cgroup had at the source, in the words of cgroup v2's files; empty: not set.
type Limits struct{ MemoryMax, CPUMax, PidsMax string }

// cgroups are the capsule's: top holds nothing itself, guardian and tree have one each, limits are the tree's.
type cgroups struct {
	mount *os.File // of a private mount where none was there, else nil
	top   string
	unset []string // limits that could not be set and why
}

const (
	guardianGroup = "guardian"
	treeGroup     = "tree"
)

func makeCgroups(free Free, name string, l Limits) (*cgroups, error) {
	parent, mount, err := cgroupParent(free)
	if err != nil {
		return nil, err
	}
	sweep(parent)
	g := &cgroups{mount: mount, top: filepath.Join(parent, name)}
	for _, d := range []string{g.top, g.dir(guardianGroup), g.dir(treeGroup)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			err = fmt.Errorf("make cgroup: %w", err)
			if d == g.top { // somebody else's
				g.closeMount()
				return nil, err
			}
			return nil, errors.Join(err, g.remove())
		}
	}
	g.limit(l)
	return g, nil
}

// limit sets the tree's limits, or notes why it can't.
func (g *cgroups) limit(l Limits) {
	for _, v := range []struct{ controller, file, value string }{
		{"memory", "memory.max", l.MemoryMax}, {"cpu", "cpu.max", l.CPUMax}, {"pids", "pids.max", l.PidsMax},
	} {
		if v.value == "" || v.value == "max" {
			continue
		}
		// Where the controller is not delegated to here (or still on v1) the write says ENOENT: the limit cannot be kept.
		err := os.WriteFile(filepath.Join(g.top, "cgroup.subtree_control"), []byte("+"+v.controller), 0)
		if err == nil {
			err = os.WriteFile(filepath.Join(g.dir(treeGroup), v.file), []byte(v.value), 0)
		}
		if err != nil {
			g.unset = append(g.unset, fmt.Sprintf("%s=%s: %v", v.file, v.value, err))
		}
	}
}

// staleAfter is far longer than a capsule's cgroups are without a process at its start.
const staleAfter = 10 * time.Minute

// sweep removes cgroups of capsules that have ended without an agent to clean up after them.
func sweep(parent string) {
	dirs, err := filepath.Glob(filepath.Join(parent, "lazymig-????????-dst"))
	if err != nil {
		return
	}
	for _, d := range dirs {
		fi, err := os.Stat(d)
		if err != nil || time.Since(fi.ModTime()) < staleAfter {
			continue
		}
		for _, sub := range []string{guardianGroup, treeGroup, ""} {
			if err := unix.Rmdir(filepath.Join(d, sub)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				break // EBUSY: a process is in it
			}
		}
	}
}

func (g *cgroups) dir(sub string) string { return filepath.Join(g.top, sub) }

func (g *cgroups) closeMount() {
	if g.mount != nil {
		g.mount.Close()
		g.mount = nil
	}
}

// kill sends SIGKILL to all of a group, calls then, and waits until it is empty.
func (g *cgroups) kill(ctx context.Context, sub string, then func() error) error {
	dir := g.dir(sub)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
				return nil
			}
			err = killEach(dir) // before Linux 5.14
		}
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", sub, err)
		}
	}
	if then != nil {
		if err := then(); err != nil {
			return err
		}
	}
	return waitEmpty(ctx, dir)
}

func killEach(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("1"), 0); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for f := range strings.FieldsSeq(string(b)) {
		var pid int
		if _, err := fmt.Sscan(f, &pid); err != nil || pid <= 0 {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("0"), 0)
}

// waitEmpty waits for "populated 0" in cgroup.events, which the kernel announces by POLLPRI.
func waitEmpty(ctx context.Context, dir string) error {
	f, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for empty cgroup: %w", err)
	}
	defer f.Close()
	b := make([]byte, 256)
	for {
		n, err := f.ReadAt(b, 0)
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		if n == 0 {
			return fmt.Errorf("wait for empty cgroup: %w", err)
		}
		if strings.Contains(string(b[:n]), "populated 0") {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for empty cgroup %s: %w", filepath.Base(dir), err)
		}
		p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(p, 100); err != nil && !errors.Is(err, unix.EINTR) { // wakes to look at ctx
			return fmt.Errorf("wait for empty cgroup: %w", err)
		}
	}
}

// remove removes what is there. A cgroup whose last task has just been reaped may be busy for a moment.
func (g *cgroups) remove() error {
	var errs []error
	for _, d := range []string{g.dir(treeGroup), g.dir(guardianGroup), g.top} {
		var err error
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) { //nolint:forbidigo // there is no event
			err = unix.Rmdir(d)
			if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
				break
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", d, err))
		}
	}
	if len(errs) == 0 {
		g.closeMount()
	}
	return errors.Join(errs...)
}

// cgroupParent is the directory beside this process's own cgroup. Where cgroup v2 is not mounted it is mounted for this
// process alone.
func cgroupParent(free Free) (string, *os.File, error) {
	own := "/"
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", nil, fmt.Errorf("find own cgroup: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = p
		}
	}
	point, root, err := cgroupMount()
	if err != nil {
		return "", nil, err
	}
	var mount *os.File
	if point == "" {
		if mount, err = free.MountCgroup(); err != nil {
			return "", nil, err
		}
		point, root = fmt.Sprintf("/proc/self/fd/%d", mount.Fd()), "/"
	}
	rel := "/"
	if root == "/" {
		rel = own
	} else if r, ok := strings.CutPrefix(own, root); ok {
		rel = path.Join("/", r)
	}
	dir := filepath.Join(point, path.Dir(path.Clean(rel)))
	if _, err := os.Stat(dir); err != nil { // a process outside of this cgroup namespace's root
		dir = point
	}
	return dir, mount, nil
}

func cgroupMount() (point, root string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", "", fmt.Errorf("find cgroup v2: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		left, right, ok := strings.Cut(s.Text(), " - ")
		l := strings.Fields(left)
		var st unix.Statfs_t
		if ok && len(l) >= 6 && strings.HasPrefix(right, "cgroup2 ") && strings.HasPrefix(l[5], "rw") && !strings.HasPrefix(l[3], "/..") &&
			unix.Statfs(l[4], &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC { // else something is mounted over it
			return l[4], l[3], nil
		}
	}
	return "", "", s.Err()
}

func mountCgroup() (*os.File, error) {
	fsfd, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup v2: %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("mount cgroup v2: %w", err)
	}
	m, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup v2: %w", err)
	}
	return os.NewFile(uintptr(m), "cgroup2"), nil
}
