package restore

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/restore/memory"
)

// cores tells of core dumps that are not whole: the kernel does not wait for the pages of a task that dumps (fs/userfaultfd.c, handle_userfault),
// so what has not come is zero there. How a task ended is known of the guardian's own children; of others the kernel tells since Linux 6.15.
type cores struct {
	engine *memory.Engine
	tell   func(Event)
	looks  []func()

	mu   sync.Mutex
	told map[int]bool // PIDs
}

func newCores(e *memory.Engine, tell func(Event)) *cores {
	return &cores{engine: e, tell: tell, told: map[int]bool{}}
}

// watch begins with the restored tasks, before anybody reaps. What it starts ends with them or with this process.
func (c *cores) watch(tasks []memory.TaskMem) {
	for _, t := range tasks {
		fd, err := unix.PidfdOpen(int(t.ID), unix.PIDFD_NONBLOCK)
		if err != nil {
			continue // it has ended, and its parent has seen it
		}
		rc, err := os.NewFile(uintptr(fd), "pidfd").SyscallConn() // what does not block has a poller
		if err != nil {
			continue
		}
		look := func(fd uintptr) bool {
			ws, err := exitStatus(fd)
			if err == nil {
				c.ended(int(t.ID), ws)
			}
			return !errors.Is(err, unix.EAGAIN)
		}
		c.looks = append(c.looks, func() { _ = rc.Control(func(fd uintptr) { look(fd) }) })
		go func() { _ = rc.Read(look) }() // woken when it ends and again when it has been reaped
	}
}

// last looks once more, when all have ended.
func (c *cores) last() {
	if c == nil {
		return
	}
	for _, look := range c.looks {
		look()
	}
}

// exitStatus is the wait status of a process that has been reaped; EAGAIN: not yet.
func exitStatus(pidfd uintptr) (unix.WaitStatus, error) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, pidfd, unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return 0, errno
	}
	if info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, unix.EAGAIN
	}
	return unix.WaitStatus(info.Exit_code), nil
}

// ended is told of each process whose end is seen; twice is harmless.
func (c *cores) ended(pid int, ws unix.WaitStatus) {
	if c == nil || !ws.CoreDump() {
		return
	}
	lacked := c.engine.Lacked(uint32(pid))
	c.mu.Lock()
	told := c.told[pid]
	c.told[pid] = true
	c.mu.Unlock()
	if told || !lacked {
		return
	}
	c.tell(Event{Kind: EventCore, Text: fmt.Sprintf("the core that process %d has dumped (%v) is not whole: memory that had not come is zeros in it", pid, ws.Signal())})
}
