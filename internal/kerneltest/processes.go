package kerneltest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// proc is one line of the process table.
type proc struct {
	pid, ppid int
	comm      string
	state     string
	start     string // start time: tells a PID from its reuse
}

func readProc(pid int) (proc, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return proc{}, err
	}
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return proc{}, fmt.Errorf("parse /proc/%d/stat: %q", pid, b)
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 {
		return proc{}, fmt.Errorf("parse /proc/%d/stat: %q", pid, b)
	}
	ppid, err := strconv.Atoi(f[1])
	if err != nil {
		return proc{}, fmt.Errorf("parse /proc/%d/stat: %w", pid, err)
	}
	return proc{pid: pid, ppid: ppid, comm: string(b[open+1 : end]), state: f[0], start: f[19]}, nil
}

// processes finds our descendants, and what outlived its parent: whatever runs our own
// executable, or is in the cgroup that [Main] made.
func processes() (map[string]string, error) {
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	self := os.Getpid()
	all := map[int]proc{}
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, err := readProc(pid); err == nil {
			all[pid] = p
		}
	}
	own, err := executable(self)
	if err != nil {
		return nil, err
	}
	run, err := inRun()
	if err != nil {
		return nil, err
	}
	seen := map[string]string{}
	for pid, p := range all {
		if pid == self || isAncestor(all, pid, self) {
			continue
		}
		if !isAncestor(all, self, pid) && !run[strconv.Itoa(pid)] {
			if exe, err := executable(pid); err != nil || exe != own {
				continue
			}
		}
		id := fmt.Sprintf("%d %s", pid, p.start)
		seen[id] = fmt.Sprintf("%d (%s) state %s parent %d %s", pid, p.comm, p.state, p.ppid, cmdline(pid))
	}
	return seen, nil
}

type file struct {
	major, minor uint32
	ino          uint64
}

// executable tells which file a process runs. Not by asking a file server: other tests' processes may run from FUSE
// mounts that do not answer at the moment.
func executable(pid int) (file, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/exe", pid), unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
	return file{st.Dev_major, st.Dev_minor, st.Ino}, err
}

// isAncestor says whether a is above pid.
func isAncestor(all map[int]proc, a, pid int) bool {
	for n := 0; n < len(all); n++ {
		p, ok := all[pid]
		if !ok || p.ppid == 0 {
			return false
		}
		if p.ppid == a {
			return true
		}
		pid = p.ppid
	}
	return false
}

func cmdline(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}
