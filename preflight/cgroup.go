package preflight

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func readlink(path string) (string, error) { return os.Readlink(path) }

// hostName asks the tree's UTS namespace, by a thread that joins it and ends.
func (in *inspector) hostName() string {
	name := ""
	err := in.inNamespace("uts", unix.CLONE_NEWUTS, func() error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		name = unix.ByteSliceToString(u.Nodename[:])
		return nil
	})
	if err != nil {
		in.log.Warn("read host name of the tree", "err", err)
	}
	return name
}

// inNamespace runs f in the root task's namespace; in this thread if it is our own.
func (in *inspector) inNamespace(name string, flag int, f func() error) error {
	root := in.tasks[0]
	own, _ := readlink(filepath.Join(in.proc, "self/ns", name))
	if root.ns[name] == own {
		return f()
	}
	fd, err := unix.Open(filepath.Join(root.dir, "ns", name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s namespace of %d: %w", name, root.PID, err)
	}
	defer unix.Close(fd)
	return ownThread(func() error {
		if err := unix.Setns(fd, flag); err != nil {
			return fmt.Errorf("join %s namespace of %d: %w", name, root.PID, err)
		}
		return f()
	})
}

// ownThread runs f in a thread that ends afterwards. It is never the main thread: that one does not end, and /proc/self
// shows its namespaces for the whole process.
func ownThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f() // never unlocked: the thread ends with the goroutine
			return
		}
		done <- ownThread(f) // another thread, as long as this goroutine holds the main one
		runtime.UnlockOSThread()
	}()
	return <-done
}

// unifiedPath is a task's cgroup v2 path, relative to the mount.
func unifiedPath(dir string) string {
	b, err := readFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return p
		}
	}
	return ""
}

// cgroup2Mount is where a cgroup v2 hierarchy is mounted, or empty.
func cgroup2Mount(proc string) string {
	b, err := readFile(filepath.Join(proc, "self/mountinfo"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if ok && len(f) >= 5 && strings.HasPrefix(right, "cgroup2 ") && f[3] == "/" {
			return f[4]
		}
	}
	return ""
}

// CodeUnit is the finding that the tree is a service of systemd.
const CodeUnit = "systemd-unit"

// checkCgroup reads the limits that the capsule gets again, and finds the tree's systemd unit.
func (in *inspector) checkCgroup() {
	root := in.tasks[0]
	path := unifiedPath(root.dir)
	cg := &in.rep.Tree.Cgroup
	cg.Path = path
	if mount := cgroup2Mount(in.proc); mount != "" && path != "" && !strings.HasPrefix(path, "/..") {
		for p := path; ; p = filepath.Dir(p) {
			readLimits(cg, filepath.Join(mount, p))
			if p == "/" || p == "." {
				break
			}
		}
	}
	if unit := unitOf(root.dir); unit != "" {
		in.rep.Tree.Unit = unit
		in.add(Finding{
			CodeUnit, Warn, root.PID, "it is the service " + unit,
			"systemd sees it end here and may start it again; the unit does not exist at the target", "migrate with --unit: systemd does neither then, and the unit is disabled",
		})
	}
}

// readLimits tightens cg by one cgroup's limits.
func readLimits(cg *Cgroup, dir string) {
	tighten := func(v *uint64, name string) {
		b, err := readFile(filepath.Join(dir, name))
		if err != nil {
			return
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil && (*v == 0 || n < *v) {
			*v = n
		}
	}
	tighten(&cg.MemoryMax, "memory.max")
	tighten(&cg.PidsMax, "pids.max")
	b, err := readFile(filepath.Join(dir, "cpu.max"))
	if err != nil {
		return
	}
	share := func(s string) float64 {
		f := strings.Fields(s)
		if len(f) != 2 {
			return -1
		}
		q, err1 := strconv.ParseFloat(f[0], 64)
		p, err2 := strconv.ParseFloat(f[1], 64)
		if err1 != nil || err2 != nil || p <= 0 {
			return -1 // "max"
		}
		return q / p
	}
	s := strings.TrimSpace(string(b))
	if v := share(s); v >= 0 && (cg.CPUMax == "" || v < share(cg.CPUMax)) {
		cg.CPUMax = s
	}
}

// unitOf is the innermost service in the task's cgroup paths; user@N.service holds whole logins and is none.
func unitOf(dir string) string {
	b, err := readFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] != "" && f[1] != "name=systemd" {
			continue
		}
		parts := strings.Split(f[2], "/")
		for _, part := range slices.Backward(parts) {
			if strings.HasSuffix(part, ".service") && !strings.HasPrefix(part, "user@") {
				return part
			}
		}
	}
	return ""
}
