package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine describes where the numbers come from.
type machine struct {
	cpu, kernel string
	cpus        int
	memory      uint64
	loadBefore  string
	loadAfter   string
	args        string // of the run
}

func (m *machine) look() {
	m.cpus = runtime.NumCPU()
	m.cpu, m.kernel = "unknown", "unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.kernel = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.memory = si.Totalram * uint64(si.Unit)
	}
	m.loadBefore = loadAverage()
}

func (m *machine) lookAgain() { m.loadAfter = loadAverage() }

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	return strings.Join(strings.Fields(string(b))[:1], "")
}

// warmMemory touches as much memory as source and target will have, and frees it: what a virtual machine touches for the
// first time is slow, and free memory may go back to its host in between.
func warmMemory(ctx context.Context, mb int) error {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return fmt.Errorf("ask for free memory: %w", err)
	}
	free := int(si.Freeram * uint64(si.Unit) >> 20)
	n := min(2*mb+mb/2+512, free-1024)
	for ; n > 0; n -= 512 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := unix.Mmap(-1, 0, min(n, 512)<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil {
			return fmt.Errorf("touch memory: %w", err)
		}
		defer func() { _ = unix.Munmap(b) }() // all of it is held at once
	}
	return nil
}

// raisePipes gives stock CRIU the pipes that its lazy pages need.
func raisePipes() (putBack func() error, err error) {
	was := map[string][]byte{}
	putBack = func() error {
		var err error
		for p, v := range was {
			err = errors.Join(err, os.WriteFile(p, v, 0))
		}
		return err
	}
	for p, v := range map[string]string{"/proc/sys/fs/pipe-user-pages-soft": "0", "/proc/sys/fs/pipe-max-size": strconv.Itoa(1 << 30)} {
		b, err := os.ReadFile(p)
		if err == nil {
			was[p] = b
			err = os.WriteFile(p, []byte(v), 0)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("raise pipe limit: %w", err), putBack())
		}
	}
	return putBack, nil
}

// cpuMeter counts the CPU time of everything that this process starts from now on, by a cgroup of its own.
type cpuMeter struct {
	dir  string
	back string // cgroup.procs of where this process was
}

func newCPUMeter() (*cpuMeter, error) {
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/unified/cgroup.procs"); err == nil {
		root += "/unified"
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find own cgroup: %w", err)
	}
	own := "/"
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "0::"); ok {
			own = strings.TrimSpace(v)
		}
	}
	m := &cpuMeter{dir: filepath.Join(root, own, fmt.Sprintf("bench-%d", os.Getpid())), back: filepath.Join(root, own, "cgroup.procs")}
	if err := os.MkdirAll(filepath.Join(m.dir, "main"), 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "main", "cgroup.procs"), []byte("0"), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("enter cgroup: %w", err), m.close())
	}
	return m, nil
}

// seconds is the time used so far.
func (m *cpuMeter) seconds() (float64, error) {
	b, err := os.ReadFile(filepath.Join(m.dir, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "usage_usec "); ok {
			us, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return us / 1e6, err
		}
	}
	return 0, fmt.Errorf("read CPU time: no usage_usec in %s: %w", m.dir, unix.ENOENT)
}

func (m *cpuMeter) close() error {
	err := os.WriteFile(m.back, []byte("0"), 0)
	for _, d := range []string{filepath.Join(m.dir, "main"), m.dir} {
		err = errors.Join(err, removeCgroup(d))
	}
	return err
}

// removeCgroup waits for dying processes.
func removeCgroup(dir string) error {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := os.Remove(dir); !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// machineRow marks the line of a file of rows that says where they come from.
const machineRow = "# machine"

func (m *machine) record() []string {
	return []string{machineRow, strconv.Itoa(m.cpus), m.cpu, strconv.FormatUint(m.memory, 10), m.kernel, m.loadBefore, m.args}
}

// parse is for files of this program; what is missing stays unknown.
func (m *machine) parse(rec []string) {
	if len(rec) != 7 {
		return
	}
	m.cpus, _ = strconv.Atoi(rec[1])
	m.memory, _ = strconv.ParseUint(rec[3], 10, 64)
	m.cpu, m.kernel, m.loadBefore, m.args = rec[2], rec[4], rec[5], rec[6]
}
