package dump

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is one process of the tree as /proc shows it.
type process struct {
	pid     int    // as this process sees it
	vpid    uint32 // in its own PID namespace
	depth   int    // of that namespace, as /proc shows it
	start   uint64 // clock ticks after boot
	zombie  bool
	stopped bool
	tids    []uint32 // in its own PID namespace
}

// maxProcesses bounds a tree that forks faster than it is enumerated.
const maxProcesses = 1 << 16

// enumerate lists the tree of root, parents before children. Processes that end meanwhile are left out.
func enumerate(root int) ([]process, error) {
	p, err := readProcess(root)
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", root, err)
	}
	list := []process{p}
	for i := 0; i < len(list); i++ {
		kids, err := children(list[i].pid)
		if err != nil {
			if i > 0 && gone(err) {
				continue
			}
			return nil, fmt.Errorf("list children of process %d: %w", list[i].pid, err)
		}
		for _, k := range kids {
			p, err := readProcess(k)
			if gone(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("look at process %d: %w", k, err)
			}
			if p.depth != list[0].depth {
				return nil, fmt.Errorf("process %d is in another PID namespace than process %d: %w", k, root, unix.EXDEV)
			}
			if len(list) >= maxProcesses {
				return nil, fmt.Errorf("list tree of process %d: more than %d processes", root, maxProcesses)
			}
			if !slices.ContainsFunc(list, func(q process) bool { return q.pid == p.pid }) {
				list = append(list, p)
			}
		}
	}
	return list, nil
}

// gone says that an error of /proc means that the process has ended.
func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

func children(pid int) ([]int, error) {
	tids, err := tasksOf(pid)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, tid := range tids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, tid))
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for f := range bytes.FieldsSeq(b) {
			k, err := strconv.Atoi(string(f))
			if err != nil {
				return nil, err
			}
			list = append(list, k)
		}
	}
	return list, nil
}

func tasksOf(pid int) ([]int, error) {
	d, err := os.Open(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	tids := make([]int, 0, len(names))
	for _, n := range names {
		tid, err := strconv.Atoi(n)
		if err != nil {
			return nil, err
		}
		tids = append(tids, tid)
	}
	slices.Sort(tids)
	return tids, nil
}

// readProcess reads state, start time, and the IDs inside its PID namespace.
func readProcess(pid int) (process, error) {
	p := process{pid: pid}
	var state byte
	var err error
	if state, p.start, err = readStat(pid); err != nil {
		return p, err
	}
	p.zombie, p.stopped = state == 'Z' || state == 'X', state == 'T'
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return p, err
	}
	if p.vpid, p.depth, err = lastID(status); err != nil {
		return p, err
	}
	if p.zombie {
		p.tids = []uint32{p.vpid}
		return p, nil
	}
	tids, err := tasksOf(pid)
	if err != nil {
		return p, err
	}
	if len(tids) == 1 {
		p.tids = []uint32{p.vpid}
		return p, nil
	}
	for _, tid := range tids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
		if gone(err) {
			continue
		}
		if err != nil {
			return p, err
		}
		v, _, err := lastID(b)
		if err != nil {
			return p, err
		}
		p.tids = append(p.tids, v)
	}
	return p, nil
}

// readStat reads the state and the start time of /proc/PID/stat.
func readStat(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	i := bytes.LastIndexByte(b, ')') // the name may hold anything
	if i < 0 || i+2 >= len(b) {
		return 0, 0, fmt.Errorf("parse /proc/%d/stat: %w", pid, unix.EINVAL)
	}
	f := strings.Fields(string(b[i+2:]))
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("parse /proc/%d/stat: %w", pid, unix.EINVAL)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return f[0][0], start, err
}

// lastID is the last number of the NSpid line, the ID in the innermost namespace, and how many there are.
func lastID(status []byte) (id uint32, depth int, err error) {
	_, rest, ok := bytes.Cut(status, []byte("\nNSpid:"))
	if !ok {
		return 0, 0, fmt.Errorf("no NSpid in status: %w", unix.EINVAL)
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) == 0 {
		return 0, 0, fmt.Errorf("no NSpid in status: %w", unix.EINVAL)
	}
	n, err := strconv.ParseUint(string(f[len(f)-1]), 10, 32)
	return uint32(n), len(f), err
}

// statusKB reads one "Name:  123 kB" line of /proc/PID/status.
func statusKB(pid int, name string) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(b, []byte("\n"+name+":"))
	if !ok {
		return 0, nil
	}
	f := bytes.Fields(rest)
	if len(f) == 0 {
		return 0, unix.EINVAL
	}
	return strconv.ParseUint(string(f[0]), 10, 64)
}
