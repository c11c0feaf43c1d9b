package memory

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A child that is forked while pages are missing shares none of those with its parent: a page that arrives is copied into both. Where
// memory does not suffice for that, the FORK event is left unread for a while, and the fork waits for it. Meanwhile the kernel refuses
// all fills of that process (its mappings are changing), so what it misses waits, too; others go on, and may give memory back.

const (
	forkWait  = 10 * time.Second      // then the fork goes on all the same
	roomEvery = 50 * time.Millisecond // between two looks at free memory
)

// shortage is what an engine knows about it.
type shortage struct {
	room   uint64
	looked time.Time
}

// roomFor says whether there is memory for so many bytes more.
func (e *Engine) roomFor(n uint64, now time.Time) bool {
	if s := &e.shortage; now.Sub(s.looked) >= roomEvery {
		s.room, s.looked = e.opt.Room(), now
	}
	return e.shortage.room >= n
}

// holdFork says whether m's events are to be left unread, because one of them is a FORK for whose child memory does not suffice. What an
// event is shows only when it is read, but its thread waits in the system call meanwhile.
func (e *Engine) holdFork(m *mm) bool {
	if e.opt.Room == nil || m.missing == 0 || m.id == 0 {
		return false
	}
	if changing, err := m.fd.changing(); err != nil || !changing {
		return false
	}
	now, need := time.Now(), uint64(m.missing)*pageSize
	if e.roomFor(need, now) {
		return false
	}
	what := underWay(e.opt.Proc, m.id)
	if what == opOther {
		return false
	}
	if m.forkHeld.IsZero() {
		m.forkHeld = now
	}
	if what == opFork && !m.forkTold {
		m.forkTold = true
		e.stats.forksHeld++
		e.log.Warn("a fork waits for memory", "task", m.id, "needs", need, "available", e.shortage.room, "at most", e.opt.ForkWait)
	}
	if now.Sub(m.forkHeld) < e.opt.ForkWait {
		return true
	}
	if m.forkTold && !m.forkLate {
		m.forkLate = true
		e.log.Warn("a fork has waited for memory in vain and goes on", "task", m.id, "needs", need, "available", e.shortage.room)
	}
	return false
}

// forkRead says that m's FORK has been read: the next one waits anew.
func (m *mm) forkRead() { m.forkHeld, m.forkTold, m.forkLate = time.Time{}, false, false }

// operation is what a process does to its mappings.
type operation int

const (
	opOther   operation = iota
	opFork              // or a clone that could be one
	opUnknown           // its thread is about to wait
)

// underWay says what a process whose mappings are changing does: the thread that does it waits in the system call for its event to be read.
func underWay(proc string, pid uint32) operation {
	dir := filepath.Join(proc, strconv.FormatUint(uint64(pid), 10), "task")
	threads, err := os.ReadDir(dir)
	if err != nil {
		return opOther
	}
	running, other := false, false
	for _, t := range threads {
		b, err := os.ReadFile(filepath.Join(dir, t.Name(), "syscall")) // number and arguments in hexadecimal, or "running"
		if err != nil {
			continue
		}
		f := strings.Fields(string(b))
		if len(f) < 2 {
			running = true
			continue
		}
		nr, _ := strconv.Atoi(f[0])
		flags, _ := strconv.ParseUint(f[1], 0, 64)
		switch nr {
		case unix.SYS_CLONE3, sysFork: // clone3's flags are in the process's memory, which must not be touched
			return opFork
		case unix.SYS_CLONE:
			if flags&unix.CLONE_VM == 0 {
				return opFork
			}
		case unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MADVISE, unix.SYS_MMAP, unix.SYS_BRK:
			other = true
		}
	}
	if running && !other {
		return opUnknown
	}
	return opOther
}
