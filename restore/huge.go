package restore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/restore/memory"
)

// Memory that came page by page lies in small pages. Where the source had transparent huge pages they are made again when all is here: before, the kernel
// refuses what has a hole in registered memory. Each is copied under the process's own lock, so they are made with pauses between them, in which the process
// can map and fault. The haste of a thread that is rarely run would be the wrong way: it might hold that lock meanwhile.

const (
	hugeSize      = 2 << 20
	madvCollapse  = 25 // MADV_COLLAPSE of include/uapi/asm-generic/mman-common.h, since 6.1
	collapsePause = 3  // times as long as making the one before took
	// leaveCollapse bounds how long a tree that is left waits, without pauses, for what is not done.
	leaveCollapse = 10 * time.Second
	// collapseRoom is left to the tree: while a huge page is made there are two copies, and those of a shared one stay.
	collapseRoom = 256 << 20
)

// collapsing makes huge pages where tasks had them, as far as at least half of the pages are there and nobody else's.
type collapsing struct {
	log    *slog.Logger
	group  *os.File // the tree's cgroup
	closed <-chan struct{}
	hurry  chan struct{} // closed: no pauses, and not for long
	done   chan struct{}

	until        time.Time // set when hurry has been seen
	made, failed int
}

// startCollapse begins when all memory is here.
func (g *guardian) startCollapse() {
	e := g.hub.getEngine()
	if g.huge != nil || e == nil {
		return
	}
	c := &collapsing{log: g.log, group: g.group, closed: g.hub.closed, hurry: make(chan struct{}), done: make(chan struct{})}
	g.huge = c
	tasks := g.hub.tasks
	go func() {
		defer close(c.done)
		select {
		case <-e.Drained():
			c.all(tasks)
		case <-c.closed:
		}
	}()
}

// finishCollapse waits for what is not done, for a while.
func (g *guardian) finishCollapse() {
	if g.huge != nil {
		close(g.huge.hurry)
		<-g.huge.done
	}
}

func (c *collapsing) all(tasks []memory.TaskMem) {
	if b, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled"); err != nil || bytes.Contains(b, []byte("[never]")) {
		return
	}
	for _, t := range tasks {
		if len(t.Huge) == 0 {
			continue
		}
		if err := c.task(t); err != nil {
			c.log.Info("huge pages are not made again", "task", t.ID, "err", err)
		}
	}
	if c.made+c.failed > 0 {
		c.log.Info("huge pages are made again", "pages", c.made, "not", c.failed)
	}
}

var errNoMore = errors.New("the tree is left, or its memory is short")

// task makes those of one process. One that has ended, or has begun another program, has nothing there, or may have it.
func (c *collapsing) task(t memory.TaskMem) error {
	pidfd, err := unix.PidfdOpen(int(t.ID), 0)
	if err != nil {
		return fmt.Errorf("open process: %w", err)
	}
	defer unix.Close(pidfd)
	f, err := os.Open("/proc/" + strconv.FormatUint(uint64(t.ID), 10) + "/pagemap")
	if err != nil {
		return fmt.Errorf("look at its pages: %w", err)
	}
	defer f.Close()
	for _, r := range t.Huge {
		for i := range r[1] {
			addr := (r[0] + i) * hugeSize
			if !worthwhile(f, addr) {
				continue
			}
			begun := time.Now()
			switch err := collapseOne(pidfd, addr); {
			case err == nil:
				c.made++
			case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
				return err
			default: // no huge page to be had, the mapping is another one, or somebody has pinned a page
				c.failed++
			}
			if !c.pause(time.Since(begun) * collapsePause) {
				return errNoMore
			}
		}
	}
	return nil
}

// worthwhile says whether at least half of the small pages are there, in this process alone: else making the huge one would take memory that the tree does
// not use, or uses twice.
func worthwhile(pages *os.File, addr uint64) bool {
	var b [hugeSize / pagesrv.PageSize * pagemap.EntrySize]byte
	if _, err := pages.ReadAt(b[:], int64(addr/pagesrv.PageSize*pagemap.EntrySize)); err != nil {
		return false
	}
	own := 0
	for i := 0; i < len(b); i += pagemap.EntrySize {
		if e := binary.NativeEndian.Uint64(b[i:]); e&pagemap.EntryPresent != 0 && e&pagemap.EntryOwn != 0 {
			own++
		}
	}
	return own >= hugeSize/pagesrv.PageSize/2
}

func collapseOne(pidfd int, addr uint64) error {
	v := unix.RemoteIovec{Base: uintptr(addr), Len: hugeSize}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&v)), 1, madvCollapse, 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// pause says false if there is no time for more.
func (c *collapsing) pause(d time.Duration) bool {
	if room(c.group) < collapseRoom {
		return false
	}
	if !c.until.IsZero() {
		return time.Now().Before(c.until)
	}
	select {
	case <-time.After(d):
	case <-c.hurry:
		c.until = time.Now().Add(leaveCollapse)
	case <-c.closed:
		return false
	}
	return true
}
