package preflight

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// Options says which tree to look at.
type Options struct {
	PID        int
	AcceptLoss bool         // go on although a protection (Landlock, MDWE, mseal) would vanish at the target
	NoProbe    bool         // never stop a process, not even for microseconds: MDWE and Landlock then stay unknown
	Proc       string       // default /proc
	Log        *slog.Logger // default: nothing is logged
}

// inspector carries one look at one tree.
type inspector struct {
	ctx   context.Context
	opt   Options
	proc  string
	self  int
	log   *slog.Logger
	rep   *Report
	tasks []*task
	byPID map[int]*task
	socks map[uint64]*sock // sockets of the tree by inode
}

// task is a process of the tree with all that was read of it.
type task struct {
	Task
	dir     string
	stat    procStat
	status  map[string]string
	threads []thread
	ns      map[string]string
	fds     []*desc
	vmas    []vma
	merges  bool // it has said that it asked for KSM
}

type thread struct {
	tid, nsTID int
	dir        string
	stat       procStat
	status     map[string]string
}

// Process looks at the tree below a process and says whether it can be migrated. An error means that it could not be
// looked at; refusals are in the report, see Report.Err.
func Process(ctx context.Context, opt Options) (*Report, error) {
	in := &inspector{
		ctx: ctx, opt: opt, proc: opt.Proc, log: opt.Log, self: os.Getpid(),
		rep: &Report{}, byPID: map[int]*task{}, socks: map[uint64]*sock{},
	}
	if in.proc == "" {
		in.proc = "/proc"
	}
	if in.log == nil {
		in.log = slog.New(slog.DiscardHandler)
	}
	if opt.PID <= 0 {
		return nil, fmt.Errorf("look at process %d: not a process ID", opt.PID)
	}
	root, err := readStat(filepath.Join(in.proc, fmt.Sprint(opt.PID)))
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", opt.PID, err)
	}
	in.rep.Tree.Root = opt.PID
	if !in.checkRoot(root) {
		return in.rep, nil
	}
	if err := in.enumerate(); err != nil {
		return nil, err
	}
	in.checkTasks()
	in.readNamespaces()
	in.checkNamespaces()
	in.checkSysV()
	in.checkCgroup()
	for _, t := range in.tasks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		in.readFDs(t)
		in.checkFDs(t)
		in.checkMaps(t)
		in.checkPaths(t)
	}
	in.checkMounts()
	in.checkSizes()
	in.checkSockets()
	out, err := in.scanOutside()
	if err != nil {
		return nil, err
	}
	in.checkSessions(out)
	in.checkOutside(out)
	in.checkTTYs(out)
	in.checkProtections()
	in.findFixups()
	// A root that went away, or that became another process, was not looked at.
	now, err := readStat(filepath.Join(in.proc, fmt.Sprint(opt.PID)))
	if err != nil || now.start != root.start || now.state == 'Z' || now.state == 'X' {
		return nil, fmt.Errorf("look at process %d: it ended meanwhile", opt.PID)
	}
	sort.SliceStable(in.rep.Findings, func(i, j int) bool { return in.rep.Findings[i].Level > in.rep.Findings[j].Level })
	return in.rep, nil
}

// add records a finding, once: threads and inherited descriptors would repeat it.
func (in *inspector) add(f Finding) {
	if !slices.Contains(in.rep.Findings, f) {
		in.rep.Findings = append(in.rep.Findings, f)
	}
}

func (in *inspector) dir(pid int) string { return filepath.Join(in.proc, fmt.Sprint(pid)) }

// checkRoot refuses roots below which nothing needs to be looked at.
func (in *inspector) checkRoot(st procStat) bool {
	pid := in.opt.PID
	switch {
	case st.flags&pfKthread != 0:
		in.add(Finding{"kernel-thread", Refuse, pid, st.comm + " is a kernel thread", "it belongs to this kernel", "choose a process"})
		return false
	case st.state == 'Z' || st.state == 'X':
		in.add(Finding{"dead", Refuse, pid, st.comm + " has ended already", "only its exit status is left", "choose a process that runs"})
		return false
	case pid == 1:
		in.add(Finding{"init", Refuse, pid, "it is PID 1", "the whole host hangs on it", "choose a service below it"})
		return false
	}
	for p := in.self; p > 1; {
		if p == pid {
			in.add(Finding{"self", Refuse, pid, st.comm + " is lazymig itself, or started it", "lazymig would freeze itself", "run lazymig from another session"})
			return false
		}
		s, err := readStat(in.dir(p))
		if err != nil {
			break
		}
		p = s.ppid
	}
	return true
}

// enumerate reads the tasks, parents first. The list of children is not atomic: it is read until two rounds agree.
func (in *inspector) enumerate() error {
	var last []int
	for range 5 {
		pids, err := in.walk()
		if err != nil {
			return err
		}
		if slices.Equal(pids, last) {
			break
		}
		last = pids
	}
	for _, pid := range last {
		t, err := in.readTask(pid)
		switch {
		case err == nil:
			in.tasks = append(in.tasks, t)
			in.byPID[pid] = t
		case pid == in.opt.PID:
			return fmt.Errorf("look at process %d: %w", pid, err)
		case !gone(err):
			return fmt.Errorf("look at child %d: %w", pid, err)
		}
	}
	tree := &in.rep.Tree
	for _, t := range in.tasks {
		tree.Tasks = append(tree.Tasks, t.Task)
		tree.MemoryPresent += t.Memory
		tree.ThreadCount += len(t.threads)
	}
	tree.Groups = in.tasks[0].Groups
	return nil
}

func (in *inspector) walk() ([]int, error) {
	pids := []int{in.opt.PID}
	for i := 0; i < len(pids); i++ {
		tids, err := numbers(filepath.Join(in.dir(pids[i]), "task"))
		if err != nil {
			if i == 0 || !gone(err) {
				return nil, fmt.Errorf("list threads of %d: %w", pids[i], err)
			}
			continue
		}
		sort.Ints(tids)
		for _, tid := range tids {
			b, err := readFile(filepath.Join(in.dir(pids[i]), "task", fmt.Sprint(tid), "children"))
			if err != nil {
				if gone(err) {
					continue
				}
				return nil, fmt.Errorf("list children of %d: %w", pids[i], err)
			}
			for f := range strings.FieldsSeq(string(b)) {
				if c := lastInt(f); c > 0 && !slices.Contains(pids, c) {
					pids = append(pids, c)
				}
			}
		}
	}
	return pids, nil
}

func (in *inspector) readTask(pid int) (*task, error) {
	t := &task{dir: in.dir(pid)}
	var err error
	if t.stat, err = readStat(t.dir); err != nil {
		return nil, err
	}
	if t.status, err = readStatus(t.dir); err != nil {
		return nil, err
	}
	s := t.status
	t.Task = Task{
		PID: pid, NSPid: lastInt(s["NSpid"]), PPID: t.stat.ppid, Comm: t.stat.comm, State: string(t.stat.state),
		StartTime: t.stat.start, UID: uint32(nthUint(s["Uid"], 1, 10)), GID: uint32(nthUint(s["Gid"], 1, 10)),
		Groups: groups(s["Groups"]), Umask: uint32(nthUint(s["Umask"], 0, 8)), Memory: kib(s["VmRSS"]) + kib(s["VmSwap"]),
	}
	tids, err := numbers(filepath.Join(t.dir, "task"))
	if err != nil {
		return nil, err
	}
	sort.Slice(tids, func(i, j int) bool { // the leader first
		if (tids[i] == pid) != (tids[j] == pid) {
			return tids[i] == pid
		}
		return tids[i] < tids[j]
	})
	for _, tid := range tids {
		th := thread{tid: tid, dir: filepath.Join(t.dir, "task", fmt.Sprint(tid))}
		if th.stat, err = readStat(th.dir); err == nil {
			th.status, err = readStatus(th.dir)
		}
		if err != nil {
			if gone(err) && tid != pid {
				continue
			}
			return nil, err
		}
		th.nsTID = lastInt(th.status["NSpid"])
		t.threads = append(t.threads, th)
		t.TIDs = append(t.TIDs, th.nsTID)
		t.HostTIDs = append(t.HostTIDs, tid)
	}
	return t, nil
}

// zombie says that nothing but an exit status is left of it: no descriptors, no memory.
func (t *task) zombie() bool { return t.stat.state == 'Z' || t.stat.state == 'X' }
