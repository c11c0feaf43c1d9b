package kerneltest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
	"github.com/lazymig/lazymig/setup"
)

// Feature is something that a test needs from the machine.
type Feature string

// What a test can ask for.
const (
	Root          Feature = "root"
	Userfaultfd   Feature = "userfaultfd"
	FUSE          Feature = "fuse"
	CgroupFreezer Feature = "cgroup2 freezer"
	CRIU          Feature = "criu 4.2"
	PagemapScan   Feature = "PAGEMAP_SCAN"
	TimeNS        Feature = "time namespace"
	GCC           Feature = "gcc"
)

// probes answer nil when the feature is there, once per test binary.
var probes = map[Feature]func() error{
	Root:          sync.OnceValue(probeRoot),
	Userfaultfd:   sync.OnceValue(probeUserfaultfd),
	FUSE:          sync.OnceValue(probeFUSE),
	CgroupFreezer: sync.OnceValue(probeFreezer),
	CRIU:          sync.OnceValue(func() error { _, err := setup.Find(""); return err }),
	PagemapScan:   sync.OnceValue(probePagemapScan),
	TimeNS:        sync.OnceValue(func() error { _, err := os.Stat("/proc/self/ns/time"); return err }),
	GCC:           sync.OnceValue(func() error { _, err := exec.LookPath("gcc"); return err }),
}

// Need skips the test if one of the features is missing; under
// LAZYMIG_NO_SKIP=1 it fails it.
func Need(t testing.TB, features ...Feature) {
	t.Helper()
	for _, f := range features {
		probe, ok := probes[f]
		if !ok {
			t.Fatalf("unknown feature %q", f)
		}
		if err := probe(); err != nil {
			Skip(t, "needs %s: %v", f, err)
		}
	}
}

// NeedRoot is Need(t, Root).
func NeedRoot(t testing.TB) {
	t.Helper()
	Need(t, Root)
}

// NeedProgram skips or fails the test like [Need] if a program is not in PATH,
// and returns its path.
func NeedProgram(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		Skip(t, "needs %s: %v", name, err)
	}
	return p
}

// Skip skips the test, or fails it where LAZYMIG_NO_SKIP=1 forbids skips.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("LAZYMIG_NO_SKIP") == "1" {
		t.Fatalf("skip forbidden by LAZYMIG_NO_SKIP: "+format, args...)
	}
	t.Skipf(format, args...)
}

// CRIUPath returns a CRIU that is new enough, or skips like [Need].
func CRIUPath(t testing.TB) string {
	t.Helper()
	Need(t, Root, CRIU)
	p, err := setup.Find("")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// CgroupRoot returns a cgroup v2 directory where tests may make cgroups, or skips like [Need]: the one that
// [Main] made for this run, else the mount point.
func CgroupRoot(t testing.TB) string {
	t.Helper()
	Need(t, CgroupFreezer)
	top, err := runTop()
	if err == nil && top == "" {
		top, err = cgroup2Mount()
	}
	if err != nil {
		t.Fatal(err)
	}
	return top
}

func probeRoot() error {
	if os.Geteuid() != 0 {
		return unix.EPERM
	}
	return nil
}

func probeUserfaultfd() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return fmt.Errorf("open userfaultfd: %w", errno)
	}
	return unix.Close(int(fd))
}

func probeFUSE() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	return unix.Close(fd)
}

func probePagemapScan() error {
	if !pagemap.Probe().Scan {
		return unix.ENOTTY
	}
	return nil
}

// probeFreezer makes a cgroup, because reading the mount table does not tell
// whether this process may.
func probeFreezer() error {
	root, err := cgroup2Mount()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(root, "kerneltest-")
	if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	defer os.Remove(dir)
	if _, err := os.Stat(filepath.Join(dir, "cgroup.freeze")); err != nil {
		return fmt.Errorf("find freezer: %w", err)
	}
	return nil
}

func cgroup2Mount() (string, error) {
	mounts, err := readMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.fstype == "cgroup2" {
			return m.point, nil
		}
	}
	return "", errors.New("no cgroup2 mount")
}

// RepoRoot returns the directory of go.mod above the working directory.
func RepoRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		b, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.Contains(string(b), "module github.com/lazymig/lazymig") {
			return d
		}
		if d == filepath.Dir(d) {
			t.Fatalf("no go.mod above %s", dir)
		}
	}
}
