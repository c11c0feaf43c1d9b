package preflight

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const schedDeadline, schedExt = 6, 7

// dWait is how long a thread may stay uninterruptible before it counts as stuck.
const dWait = 200 * time.Millisecond

// checkTasks looks at what stat and status show of each task and thread.
func (in *inspector) checkTasks() {
	for _, t := range in.tasks {
		if t.zombie() {
			continue
		}
		for _, th := range t.threads {
			if tracer := lastInt(th.status["TracerPid"]); tracer != 0 {
				in.add(Finding{
					"traced", Refuse, t.PID, fmt.Sprintf("%s is traced by %s", t.Comm, in.who(tracer)),
					"a process has room for one tracer, and the dump needs it", "let the debugger detach",
				})
			}
			switch th.stat.policy {
			case schedDeadline:
				in.add(Finding{
					"deadline", Refuse, t.PID, t.Comm + " runs under SCHED_DEADLINE", "CRIU cannot restore that policy",
					"set another policy: chrt -o -p 0 " + fmt.Sprint(th.tid),
				})
			case schedExt:
				in.add(Finding{"sched-ext", Warn, t.PID, t.Comm + " runs under a sched_ext scheduler", "the policy is lost", ""})
			}
			if th.stat.state == 'D' {
				in.checkStuck(t, th)
			}
			if th.tid != t.PID && kcmp(t.PID, th.tid, kcmpFiles, 0, 0) > 0 {
				in.add(Finding{
					"own-descriptors", Refuse, t.PID, fmt.Sprintf("thread %d of %s has a descriptor table of its own", th.tid, t.Comm),
					"CRIU dumps one table a process, the other one would be lost", "stop using unshare(CLONE_FILES) in threads",
				})
			}
		}
		in.checkProfile(t)
		parent := in.byPID[t.stat.ppid]
		if (parent != nil && !parent.zombie() || t.PID == in.opt.PID && t.stat.ppid > 0) && kcmp(t.PID, t.stat.ppid, kcmpVM, 0, 0) == 0 {
			in.add(Finding{
				"shared-memory-map", Refuse, t.PID, fmt.Sprintf("%s runs in the memory of its parent %s", t.Comm, in.who(t.stat.ppid)),
				"it is between vfork and exec, or made by clone(CLONE_VM)", "try again",
			})
		}
	}
}

// checkProfile notes a security module's profile that confines the task. Without such a module the file cannot be read.
func (in *inspector) checkProfile(t *task) {
	b, err := readFile(filepath.Join(t.dir, "attr/current"))
	p := strings.TrimRight(string(b), "\x00\n")
	if err != nil || p == "" || p == "unconfined" || p == "kernel" || strings.Contains(p, ":unconfined_t") {
		return
	}
	if tree := &in.rep.Tree; !slices.Contains(tree.LSMProfiles, p) {
		tree.LSMProfiles = append(tree.LSMProfiles, p)
	}
}

// checkStuck waits for an uninterruptible thread: page faults and disk reads pass, a vfork or a dead NFS server does not.
func (in *inspector) checkStuck(t *task, th thread) {
	end := time.Now().Add(dWait)
	for {
		st, err := readStat(th.dir)
		if err != nil || st.state != 'D' || st.start != th.stat.start {
			return
		}
		if time.Now().After(end) {
			break
		}
		timer := time.NewTimer(2 * time.Millisecond)
		select {
		case <-in.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
	where, _ := readFile(filepath.Join(th.dir, "wchan"))
	in.add(Finding{
		"uninterruptible", Refuse, t.PID, fmt.Sprintf("thread %d of %s stays in uninterruptible sleep (%s)", th.tid, t.Comm, where),
		"it cannot be frozen: it waits for a vfork child, a disk or a server", "try again; look what it waits for",
	})
}

// who names a process for people.
func (in *inspector) who(pid int) string {
	if pid == 0 {
		return "a process outside of this PID namespace"
	}
	st, err := readStat(in.dir(pid))
	if err != nil {
		return fmt.Sprint(pid)
	}
	return fmt.Sprintf("%s (%d)", st.comm, pid)
}

// checkSessions says what is cut when the tree leaves: sessions and groups led from outside, members left behind.
func (in *inspector) checkSessions(out *outside) {
	root := in.tasks[0]
	for _, t := range in.tasks {
		if in.byPID[t.stat.sid] != nil {
			continue
		}
		if t.stat.sid != root.stat.sid {
			in.add(Finding{
				"session-outside", Refuse, t.PID, fmt.Sprintf("%s is in session %d, whose leader %s is not in the tree", t.Comm, t.stat.sid, in.who(t.stat.sid)),
				"two sessions from outside cannot be made again", "migrate the leader's tree, or start it with setsid",
			})
			continue
		}
		in.rep.Want.ShellJob = true
		in.add(Finding{
			"shell-job", Info, root.PID, fmt.Sprintf("its session %d is led from outside, by %s", root.stat.sid, in.who(root.stat.sid)),
			"at the target it joins another session", "--shell-job is set; start it with setsid to keep its session",
		})
	}
	for _, p := range out.procs {
		if in.byPID[p.stat.sid] != nil || in.byPID[p.stat.pgrp] != nil {
			in.add(Finding{
				"left-behind", Warn, p.pid, fmt.Sprintf("%s (%d) is in a session or group of the tree, but not below its root", p.stat.comm, p.pid),
				"it stays on this host", "end it, or migrate its tree too",
			})
		}
	}
	if root.stat.ppid > 1 {
		in.log.Debug("the parent stays", "parent", root.stat.ppid)
	}
}

// nsNames are the namespaces that are compared. Those for children matter where they differ from the task's own.
var nsNames = []string{"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"}

func (in *inspector) nsOf(dir string) map[string]string {
	m := make(map[string]string, len(nsNames))
	for _, n := range nsNames {
		if l, err := readlink(filepath.Join(dir, "ns", n)); err == nil {
			m[n] = l
		}
	}
	return m
}

func (in *inspector) readNamespaces() {
	for _, t := range in.tasks {
		t.ns = in.nsOf(t.dir)
	}
	tree := &in.rep.Tree
	tree.Namespaces = in.tasks[0].ns
	own := in.nsOf(filepath.Join(in.proc, "self"))
	for _, n := range nsNames {
		if a, b := tree.Namespaces[n], own[n]; a != "" && b != "" && a != b && !strings.HasSuffix(n, "_for_children") {
			tree.Foreign = append(tree.Foreign, n)
		}
	}
	tree.HostName = in.hostName()
}

// checkNamespaces compares all tasks and threads with the root, and the root with this process.
func (in *inspector) checkNamespaces() {
	root := in.tasks[0]
	differs := func(t *task, who string, ns map[string]string) {
		for _, n := range nsNames {
			a, b := ns[n], root.ns[n]
			if before, ok := strings.CutSuffix(n, "_for_children"); ok {
				b = root.ns[before]
			}
			if a != "" && b != "" && a != b {
				in.add(Finding{
					"namespaces", Refuse, t.PID, fmt.Sprintf("%s is in another %s namespace than the root of the tree", who, n),
					"nested namespaces are not made again at the target", "migrate that part by itself, or start it without unshare",
				})
			}
		}
	}
	for _, t := range in.tasks {
		if t.zombie() {
			continue
		}
		differs(t, t.Comm, t.ns)
		for _, th := range t.threads {
			if th.tid != t.PID {
				differs(t, fmt.Sprintf("thread %d of %s", th.tid, t.Comm), in.nsOf(th.dir))
			}
		}
	}
	if root.NSPid == 1 && root.PID != 1 {
		in.add(Finding{
			"namespace-init", Refuse, root.PID, root.Comm + " is PID 1 of its PID namespace",
			"PID 1 at the target is lazymig's", "migrate the service below it",
		})
	}
	for _, n := range in.rep.Tree.Foreign {
		switch n {
		case "user":
			in.add(Finding{
				"user-namespace", Refuse, root.PID, root.Comm + " is in a user namespace of its own",
				"its id maps are not made again at the target", "run it without one",
			})
		case "net":
			in.add(Finding{
				"net-namespace", Warn, root.PID, root.Comm + " is in a network namespace of its own",
				"at the target it gets the agent's network", "see that its addresses are there (check --to compares them)",
			})
		}
	}
}

// kcmp compares two tasks' kernel objects: 0 equal, 1 or 2 in the kernel's order, 3 different without an order, negative
// unknown.
func kcmp(pid1, pid2, kind int, a, b uintptr) int {
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), uintptr(kind), a, b, 0)
	if errno != 0 {
		return -1
	}
	return int(r)
}

// kcmp's types, include/uapi/linux/kcmp.h.
const (
	kcmpFile  = 0
	kcmpVM    = 1
	kcmpFiles = 2
)
