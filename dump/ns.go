package dump

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
)

// namespaces are those of the tree's root process. CRIU must run in them: it would dump those that differ from its own.
// Not entered: user (refused by the preflight) and time (needs a process of one thread; CRIU dumps its offsets).
type namespaces struct {
	mnt    *os.File
	others []nsFile // those that differ from this process's
	ipc    *os.File // one of these, or left outside; nil: this process's own
	sysV   bool     // it is left outside
}

type nsFile struct {
	f    *os.File
	kind int
}

// An IPC namespace in which there is anything of System V is left outside: CRIU dumps segments, semaphores and queues only as part of a namespace
// that is not its own, and makes one anew on the target (criu/cr-dump.c). Else they would be lost without a word.
func openNamespaces(pid int) (*namespaces, error) {
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
		if own == theirs {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			n.close()
			return nil, fmt.Errorf("look at namespaces of process %d: %w", pid, err)
		}
		if k.kind == unix.CLONE_NEWIPC {
			n.ipc = f
			if n.sysV, err = sysVIn(f); err != nil {
				n.close()
				return nil, err
			}
			if n.sysV {
				continue
			}
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

// sysVIn says whether an IPC namespace holds a segment, a semaphore set or a message queue. The kernel shows those of who opens the file.
func sysVIn(ns *os.File) (found bool, err error) {
	criu.OnThrowawayThread(func() {
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWIPC); err != nil {
			err = fmt.Errorf("look for System V objects of the tree: enter its namespace: %w", err)
			return
		}
		for _, kind := range []string{"shm", "sem", "msg"} {
			b, rerr := os.ReadFile("/proc/sysvipc/" + kind)
			if errors.Is(rerr, fs.ErrNotExist) { // a kernel without them
				continue
			}
			if rerr != nil {
				err = fmt.Errorf("look for System V objects of the tree: %w", rerr)
				return
			}
			found = found || bytes.Count(b, []byte("\n")) > 1 // the first line names the columns
		}
	})
	return found, err
}

// recheck fails if the frozen tree has something of System V and had nothing when CRIU was started in its namespace.
func (n *namespaces) recheck() error {
	if n.ipc == nil || n.sysV {
		return nil
	}
	found, err := sysVIn(n.ipc)
	if err == nil && found {
		err = fmt.Errorf("the tree's IPC namespace has got System V memory, semaphores or a queue since the preparation; remedy: try again: %w", ErrChanged)
	}
	return err
}

func (n *namespaces) close() {
	for _, o := range n.others {
		o.f.Close()
	}
	if n.ipc != nil {
		n.ipc.Close() // it may be among them; a second time does no harm
	}
	if n.mnt != nil {
		n.mnt.Close()
	}
}
