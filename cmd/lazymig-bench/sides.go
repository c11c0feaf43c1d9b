package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/lab"
)

// sides counts what each host costs: CPU time and memory of all that runs there, by cgroups that the hosts' first processes are put into.
// With cgroup v1 (where its controllers are on it) or v2; what a machine does not count is NaN.
type sides struct {
	a, b side
	tree string // the cgroup of what is moved, while it is on A, and of who asks it
	line string // network statistics of A
}

type side struct {
	cpu, memory string // directories; empty: not counted
	v2          bool
	cpu0, mem0  float64
}

// used is what a move has cost one side.
type used struct{ cpu, memory float64 } // s, bytes at worst beyond what there was before

func newSides(l *lab.Lab) (*sides, error) {
	s := &sides{line: fmt.Sprintf("/proc/%d/net/dev", l.A.Pid)}
	for _, h := range []struct {
		s    *side
		host *lab.Host
	}{{&s.a, l.A}, {&s.b, l.B}} {
		if err := h.s.make(fmt.Sprintf("lazymig-bench-%d-%s", os.Getpid(), strings.ToLower(h.host.Name)), h.host.Pid); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *side) make(name string, pid int) error {
	enter := func(dir string) (string, error) {
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		}
		return dir, err
	}
	var err, err2 error
	if _, no := os.Stat("/sys/fs/cgroup/cpuacct/cgroup.procs"); no == nil {
		s.cpu, err = enter("/sys/fs/cgroup/cpuacct/" + name)
		s.memory, err2 = enter("/sys/fs/cgroup/memory/" + name)
	} else {
		s.v2 = true
		s.cpu, err = enter("/sys/fs/cgroup/" + name)
		s.memory = s.cpu
	}
	if err = errors.Join(err, err2); err != nil {
		return fmt.Errorf("count what a host uses: %w", err)
	}
	return nil
}

// setApart takes all that runs on A but its first process out of what is counted: nothing but the load does before a move begins.
func (s *sides) setApart(first int) error {
	s.tree = s.a.cpu + "-tree"
	if err := os.Mkdir(s.tree, 0o755); err != nil {
		return fmt.Errorf("set the load apart: %w", err)
	}
	pids, err := os.ReadFile(s.a.cpu + "/cgroup.procs")
	if err != nil {
		return fmt.Errorf("set the load apart: %w", err)
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		if pid == strconv.Itoa(first) {
			continue
		}
		if err := os.WriteFile(s.tree+"/cgroup.procs", []byte(pid), 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("set the load apart: %w", err)
		}
	}
	return nil
}

func number64(path, key string) float64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return math.NaN()
	}
	for l := range strings.Lines(string(b)) {
		v := strings.TrimSpace(strings.TrimPrefix(l, key))
		if f, err := strconv.ParseFloat(v, 64); err == nil && strings.HasPrefix(l, key) {
			return f
		}
	}
	return math.NaN()
}

func (s *side) seconds() float64 {
	if s.v2 {
		return number64(s.cpu+"/cpu.stat", "usage_usec ") / 1e6
	}
	return number64(s.cpu+"/cpuacct.usage", "") / 1e9
}

// begin notes where things stand.
func (s *side) begin() {
	s.cpu0 = s.seconds()
	if s.v2 {
		s.mem0 = number64(s.memory+"/memory.current", "")
		_ = os.WriteFile(s.memory+"/memory.peak", []byte("0"), 0) // Linux 6.12; before that it is the peak since the beginning
		return
	}
	s.mem0 = number64(s.memory+"/memory.usage_in_bytes", "")
	_ = os.WriteFile(s.memory+"/memory.max_usage_in_bytes", []byte("0"), 0) // else the peak since the beginning
}

func (s *side) used() used {
	peak := s.memory + "/memory.max_usage_in_bytes"
	if s.v2 {
		peak = s.memory + "/memory.peak"
	}
	return used{cpu: s.seconds() - s.cpu0, memory: number64(peak, "") - s.mem0}
}

func (s *sides) begin() { s.a.begin(); s.b.begin() }

// wire is what has crossed the line between the hosts, in bytes.
func (s *sides) wire() float64 {
	b, err := os.ReadFile(s.line)
	if err != nil {
		return math.NaN()
	}
	for l := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(l, ":")
		if f := strings.Fields(rest); strings.TrimSpace(name) == "eth0" && len(f) > 8 {
			in, err1 := strconv.ParseFloat(f[0], 64)
			out, err2 := strconv.ParseFloat(f[8], 64)
			if err1 == nil && err2 == nil {
				return in + out
			}
		}
	}
	return math.NaN()
}

// close is for after the hosts have ended.
func (s *sides) close() (err error) {
	for _, d := range []string{s.tree, s.a.cpu, s.a.memory, s.b.cpu, s.b.memory} {
		if d == "" {
			continue
		}
		if e := removeCgroup(d); e != nil && !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// ownTime is the CPU time of a process (its directory in proc), s, and ownMemory what it holds, bytes: they are not the mover's.
func ownTime(proc string) float64 {
	b, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, err1 := strconv.ParseFloat(f[11], 64)
	kernel, err2 := strconv.ParseFloat(f[12], 64)
	if err1 != nil || err2 != nil {
		return 0
	}
	return (user + kernel) / 100 // USER_HZ
}

func ownMemory(proc string) float64 {
	var sum float64
	for _, k := range []string{"RssAnon:", "RssShmem:"} {
		b, err := os.ReadFile(proc + "/status")
		if err != nil {
			return math.NaN()
		}
		for l := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(l, k); ok {
				kb, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
				if err != nil {
					return math.NaN()
				}
				sum += kb * 1024
			}
		}
	}
	return sum
}
