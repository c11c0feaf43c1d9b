package preflight

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/setup"
)

// HostOptions says where to look on this host. Zero options work.
type HostOptions struct {
	CRIUPath string // default: found as criu.Find does
	StateDir string // default /var/lib/lazymig
	Proc     string // default /proc
	Log      *slog.Logger
}

// Facts is what one host tells the other of itself.
type Facts struct {
	HostName  string   `json:"host_name"`
	Kernel    string   `json:"kernel"`
	Arch      string   `json:"arch"`
	PageSize  int      `json:"page_size"`
	CPUs      int      `json:"cpus"`
	CPUModel  string   `json:"cpu_model"`
	CPUFlags  []string `json:"cpu_flags"`
	MemTotal  uint64   `json:"mem_total"`
	MemFree   uint64   `json:"mem_free"`             // MemAvailable, and no more than a cgroup lets this process use
	AheadRoom uint64   `json:"ahead_room,omitempty"` // bytes that an agent keeps of memory that is copied ahead
	PidMax    int      `json:"pid_max"`
	StateDir  string   `json:"state_dir"`
	StateFree uint64   `json:"state_free"` // bytes free below StateDir
	RunFree   uint64   `json:"run_free"`   // bytes free on /run, where images go
	RunTmpfs  bool     `json:"run_tmpfs"`
	// ImagesOnDisk: they go to StateDir.
	ImagesOnDisk bool            `json:"images_on_disk,omitempty"`
	Addresses    []string        `json:"addresses"` // of its network namespace
	Bound        []Listen        `json:"bound"`     // ports that are taken
	LSM          []string        `json:"lsm"`
	Profiles     []string        `json:"profiles"` // AppArmor's
	CRIU         string          `json:"criu"`     // version, empty: none
	CRIUError    string          `json:"criu_error,omitempty"`
	Features     map[string]bool `json:"features"`
}

// maxBound bounds the list of ports: it goes over the wire.
const maxBound = 8192

const (
	tmpfsMagic = 0x01021994
	ramfsMagic = 0x858458f6
)

// LocalFacts reads this host's. What cannot be read stays zero and is missed by Host and Compare.
func LocalFacts(ctx context.Context, opt HostOptions) Facts {
	proc := opt.Proc
	if proc == "" {
		proc = "/proc"
	}
	if opt.StateDir == "" {
		opt.StateDir = "/var/lib/lazymig"
	}
	f := Facts{PageSize: os.Getpagesize(), CPUs: runtime.NumCPU(), StateDir: opt.StateDir, Features: map[string]bool{}}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.HostName, f.Kernel, f.Arch = unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
	}
	f.CPUModel, f.CPUFlags = readCPU(filepath.Join(proc, "cpuinfo"))
	f.MemTotal, f.MemFree = memory(proc)
	if b, err := readFile(filepath.Join(proc, "sys/kernel/pid_max")); err == nil {
		f.PidMax = lastInt(string(b))
	}
	f.StateFree, _ = freeAt(opt.StateDir)
	var kind int64
	f.RunFree, kind = freeAt("/run")
	f.RunTmpfs = kind == tmpfsMagic || kind == ramfsMagic
	f.Addresses = addresses()
	f.Bound = boundPorts(filepath.Join(proc, "self/net"))
	if b, err := readFile("/sys/kernel/security/lsm"); err == nil {
		f.LSM = strings.Split(strings.TrimSpace(string(b)), ",")
	}
	f.Profiles = appArmorProfiles()
	if err := f.readCRIU(ctx, opt.CRIUPath); err != nil {
		f.CRIUError = err.Error()
	}
	f.readFeatures(proc)
	return f
}

// MemoryFree is Facts.MemFree of now.
func MemoryFree() uint64 {
	_, free := memory("/proc")
	return free
}

func memory(proc string) (total, free uint64) {
	if b, err := readFile(filepath.Join(proc, "meminfo")); err == nil {
		m := keyed(b)
		total, free = kib(m["MemTotal"]), kib(m["MemAvailable"])
	}
	if left, limited := memoryLeft(proc); limited {
		free = min(free, left)
	}
	return total, free
}

func readCPU(path string) (model string, flags []string) {
	b, err := readFile(path)
	if err != nil {
		return "", nil
	}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(k) {
		case "model name":
			model = strings.TrimSpace(v)
		case "flags", "Features":
			return model, strings.Fields(v)
		}
	}
	return model, nil
}

// memoryLeft is what the tightest cgroup v2 of this process still allows.
func memoryLeft(proc string) (uint64, bool) {
	mount, path := cgroup2Mount(proc), unifiedPath(filepath.Join(proc, "self"))
	if mount == "" || path == "" || strings.HasPrefix(path, "/..") {
		return 0, false
	}
	number := func(p, name string) (uint64, bool) {
		b, err := readFile(filepath.Join(mount, p, name))
		if err != nil {
			return 0, false
		}
		v, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
		return v, err == nil
	}
	left, limited := ^uint64(0), false
	for p := path; ; p = filepath.Dir(p) {
		limit, ok1 := number(p, "memory.max")
		used, ok2 := number(p, "memory.current")
		if ok1 && ok2 {
			limited = true
			left = min(left, limit-min(limit, used))
		}
		if p == "/" || p == "." {
			return left, limited
		}
	}
}

// freeAt is what the file system of a directory, or of its nearest ancestor that exists, has free.
func freeAt(dir string) (free uint64, kind int64) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return st.Bavail * uint64(st.Bsize), st.Type
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" || dir == "." {
			return 0, 0
		}
		dir = filepath.Dir(dir)
	}
}

func addresses() []string {
	var out []string
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			out = append(out, n.IP.String())
		}
	}
	return out
}

// boundPorts lists TCP listeners and bound UDP sockets.
func boundPorts(dir string) []Listen {
	var out []Listen
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := readFile(filepath.Join(dir, table))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 {
				continue
			}
			local := parseAddr(f[1])
			if !local.IsValid() || local.Port() == 0 || strings.HasPrefix(table, "tcp") && f[3] != "0A" {
				continue
			}
			if l := (Listen{table, local.Addr().String(), local.Port()}); !slices.Contains(out, l) && len(out) < maxBound {
				out = append(out, l)
			}
		}
	}
	return out
}

func appArmorProfiles() []string {
	b, err := readFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if i := strings.LastIndex(line, " ("); i > 0 {
			out = append(out, line[:i])
		}
	}
	return out
}

// readCRIU asks criu for its version and lets it check the kernel.
func (f *Facts) readCRIU(ctx context.Context, explicit string) error {
	path, prefix, err := criu.Find(explicit)
	if err != nil {
		return err
	}
	if f.CRIU, err = setup.Version(path); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	argv := criu.Argv(path, prefix, "check")
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.New("criu check: " + lastLine(out))
	}
	return nil
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	s := lines[len(lines)-1]
	return s[:min(len(s), 300)]
}
