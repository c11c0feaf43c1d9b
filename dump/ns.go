package dump

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// namespaces are those of the tree's root process. CRIU must run in them: it would dump those that differ from its own.
// Not entered: user (refused by the preflight) and time (needs a process of one thread; CRIU dumps its offsets).
type namespaces struct {
	mnt    *os.File
	others []nsFile // those that differ from this process's
}

type nsFile struct {
	f    *os.File
	kind int
}

// An IPC namespace of which segments are mapped is left outside: CRIU dumps System V memory only as part of a namespace that is not
// its own, and makes one anew on the target (criu/cr-dump.c).
func openNamespaces(pid int, sysV bool) (*namespaces, error) {
	n := &namespaces{}
	for _, k := range []struct {
		name string
		kind int
	}{
		{"uts", unix.CLONE_NEWUTS},
		{"ipc", unix.CLONE_NEWIPC},
		{"net", unix.CLONE_NEWNET},
		{"cgroup", unix.CLONE_NEWCGROUP},
		{"pid", unix.CLONE_NEWPID},
	} {
		own, err := os.Readlink("/proc/self/ns/" + k.name)
		if err != nil {
			n.close()
			return nil, fmt.Errorf("look at own namespaces: %w", err)
		}
		path := fmt.Sprintf("/proc/%d/ns/%s", pid, k.name)
		theirs, err := os.Readlink(path)
		if err != nil {
			n.close()
			return nil, fmt.Errorf("look at namespaces of process %d: %w", pid, err)
		}
		if own == theirs || k.kind == unix.CLONE_NEWIPC && sysV {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			n.close()
			return nil, fmt.Errorf("look at namespaces of process %d: %w", pid, err)
		}
		n.others = append(n.others, nsFile{f, k.kind})
	}
	mnt, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		n.close()
		return nil, fmt.Errorf("look at namespaces of process %d: %w", pid, err)
	}
	n.mnt = mnt
	return n, nil
}

// enter moves the calling, locked thread. A PID namespace counts for the children of the thread.
func (n *namespaces) enter() error {
	for _, o := range n.others {
		if err := unix.Setns(int(o.f.Fd()), o.kind); err != nil {
			return fmt.Errorf("enter namespace of the tree: %w", err)
		}
	}
	return enterMount(n.mnt)
}

// usesSysV says whether a task of the tree maps a System V segment.
func (d *Dump) usesSysV() bool {
	for _, p := range d.procs {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.pid))
		if err == nil && bytes.Contains(b, []byte(" /SYSV")) { // one that has ended uses nothing
			return true
		}
	}
	return false
}

func (n *namespaces) close() {
	for _, o := range n.others {
		o.f.Close()
	}
	if n.mnt != nil {
		n.mnt.Close()
	}
}
