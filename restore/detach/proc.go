package detach

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// vma is a line of /proc/PID/maps that is a file's.
type vma struct {
	start, end, offset uint64
	prot               int
	shared             bool
	dev, ino           uint64
	path               string
	flags              string // VmFlags of smaps, " rd ex mr … "
}

func parseRange(s string) (start, end uint64, err error) {
	a, b, ok := strings.Cut(s, "-")
	start, err = strconv.ParseUint(a, 16, 64)
	if err == nil {
		end, err = strconv.ParseUint(b, 16, 64)
	}
	if !ok || err != nil {
		return 0, 0, fmt.Errorf("range %q: %w", s, unix.EINVAL)
	}
	return start, end, nil
}

// parseVMA reads a line of maps, or a head line of smaps.
func parseVMA(line string) (vma, error) {
	f := strings.Fields(line)
	if len(f) < 5 || len(f[1]) != 4 {
		return vma{}, fmt.Errorf("line of maps %q: %w", line, unix.EINVAL)
	}
	var v vma
	var err error
	if v.start, v.end, err = parseRange(f[0]); err != nil {
		return v, err
	}
	for i, p := range []int{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		if f[1][i] != '-' {
			v.prot |= p
		}
	}
	v.shared = f[1][3] == 's'
	if v.offset, err = strconv.ParseUint(f[2], 16, 64); err != nil {
		return v, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(f[3], "%x:%x", &major, &minor); err != nil {
		return v, fmt.Errorf("device %q: %w", f[3], err)
	}
	v.dev = unix.Mkdev(major, minor)
	if v.ino, err = strconv.ParseUint(f[4], 10, 64); err != nil {
		return v, err
	}
	if i := strings.IndexByte(line, '/'); i >= 0 && len(f) > 5 {
		v.path = strings.TrimSuffix(line[i:], "\n")
	}
	return v, nil
}

// mapsOf are a task's mappings of the file system dev.
func mapsOf(pid int, dev uint64) ([]vma, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	var all []vma
	for line := range strings.Lines(string(b)) {
		v, err := parseVMA(line)
		if err != nil {
			return nil, err
		}
		if v.dev == dev && v.ino != 0 {
			all = append(all, v)
		}
	}
	return all, nil
}

type vmaKey struct{ start, end, offset, ino uint64 }

func (v vma) key() vmaKey { return vmaKey{v.start, v.end, v.offset, v.ino} }

// flagsOf reads VmFlags of the mappings of dev. It walks the page tables: costly where there is much memory.
func flagsOf(pid int, dev uint64) (map[vmaKey]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	all := map[vmaKey]string{}
	var cur vma
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		if flags, ok := strings.CutPrefix(sc.Text(), "VmFlags:"); ok {
			if cur.dev == dev && cur.ino != 0 {
				all[cur.key()] = flags + " "
			}
			continue
		}
		if c := sc.Text()[0]; c >= '0' && c <= '9' || c >= 'a' && c <= 'f' {
			if cur, err = parseVMA(sc.Text()); err != nil {
				return nil, err
			}
		}
	}
	return all, sc.Err()
}

// fdInfo is what /proc/PID/fdinfo/N says.
type fdInfo struct {
	pos   int64
	flags int
	locks []fileLock
	lease bool
	lines []string // of inotify, epoll, fanotify
	scm   bool     // a socket with descriptors under way
}

// fileLock is a "lock:" line.
type fileLock struct {
	kind string // POSIX, FLOCK, OFDLCK
	lk   unix.Flock_t
}

func readFDInfo(tid, fd int) (in fdInfo, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", tid, fd))
	if err != nil {
		return in, err
	}
	for line := range strings.Lines(string(b)) {
		name, v, _ := strings.Cut(line, ":")
		v = strings.TrimSpace(v)
		switch {
		case name == "pos":
			in.pos, err = strconv.ParseInt(v, 10, 64)
		case name == "flags":
			var n uint64
			n, err = strconv.ParseUint(v, 8, 32)
			in.flags = int(n)
		case name == "lock":
			err = in.addLock(v)
		case name == "scm_fds":
			in.scm = v != "0"
		case strings.HasPrefix(name, "inotify") || strings.HasPrefix(name, "tfd") || strings.HasPrefix(name, "fanotify"):
			in.lines = append(in.lines, strings.TrimSpace(line))
		}
		if err != nil {
			return in, fmt.Errorf("fdinfo %q: %w", line, err)
		}
	}
	return in, nil
}

// addLock reads "1: POSIX  ADVISORY  WRITE 1234 fd:01:5678 0 EOF" (Documentation/filesystems/proc.rst).
func (in *fdInfo) addLock(s string) error {
	f := strings.Fields(s)
	if len(f) < 8 {
		return unix.EINVAL
	}
	if f[1] != "POSIX" && f[1] != "FLOCK" && f[1] != "OFDLCK" {
		in.lease = true
		return nil
	}
	l := fileLock{kind: f[1], lk: unix.Flock_t{Type: unix.F_RDLCK}}
	if f[3] == "WRITE" {
		l.lk.Type = unix.F_WRLCK
	}
	var err error
	if l.lk.Start, err = strconv.ParseInt(f[6], 10, 64); err != nil {
		return err
	}
	if f[7] != "EOF" {
		end, err := strconv.ParseInt(f[7], 10, 64)
		if err != nil {
			return err
		}
		l.lk.Len = end - l.lk.Start + 1
	}
	in.locks = append(in.locks, l)
	return nil
}

// numbers lists a directory of numbers in /proc, sorted.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, err
	}
	var all []int
	for _, n := range names {
		if i, err := strconv.Atoi(n); err == nil {
			all = append(all, i)
		}
	}
	return all, nil
}

// mmOf fills what /proc/PID/stat knows of a process's memory (proc_pid_stat(5), fields 26 to 51).
func mmOf(pid int) (m mmMap, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return m, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // f[0] is field 3
	if len(f) < 50 {
		return m, fmt.Errorf("stat of process %d: %w", pid, unix.EINVAL)
	}
	for _, p := range []struct {
		field int
		to    *uint64
	}{
		{26, &m.startCode},
		{27, &m.endCode},
		{28, &m.startStack},
		{45, &m.startData},
		{46, &m.endData},
		{47, &m.startBrk},
		{48, &m.argStart},
		{49, &m.argEnd},
		{50, &m.envStart},
		{51, &m.envEnd},
	} {
		if *p.to, err = strconv.ParseUint(f[p.field-3], 10, 64); err != nil {
			return m, fmt.Errorf("stat of process %d: %w", pid, err)
		}
	}
	return m, nil
}
