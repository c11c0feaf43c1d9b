package restore

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDepth bounds a walk up from a cgroup.
const maxDepth = 64

// room is how many bytes of memory the processes of a cgroup may still take: what the host has available, and what each memory.max
// from the cgroup upwards leaves. A limit that can't be read (no controller, or cgroup v1) is none.
func room(group *os.File) uint64 {
	least := available()
	for dir, depth := ".", 0; depth < maxDepth; dir, depth = dir+"/..", depth+1 {
		if unix.Faccessat(int(group.Fd()), dir+"/cgroup.controllers", unix.F_OK, 0) != nil {
			break // above the hierarchy's root
		}
		most, err := number(group, dir+"/memory.max")
		used, err2 := number(group, dir+"/memory.current")
		if err != nil || err2 != nil {
			continue
		}
		least = min(least, most-min(most, used))
	}
	return least
}

// available is the host's MemAvailable; unknown: no limit.
func available() uint64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return math.MaxUint64
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			if kb, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64); err == nil {
				return kb << 10
			}
		}
	}
	return math.MaxUint64
}

// number reads a file with one below a directory; "max" is the largest.
func number(dir *os.File, name string) (uint64, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	b := make([]byte, 32)
	n, err := unix.Read(fd, b)
	if err != nil {
		return 0, err
	}
	s := string(bytes.TrimSpace(b[:n]))
	if s == "max" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// writeIn writes to a file below a directory.
func writeIn(dir *os.File, name, value string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}
