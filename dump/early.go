package dump

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
)

const pageSize = 4096

// The kernel does not wait for a userfaultfd in an exiting or core-dumping task, nor in every get_user_pages: pages that
// it looks at on such ways must be in place before the tree runs (hazards: "never lazy").
const (
	tcbSize       = 2560            // struct pthread of glibc is 2,304 bytes
	redZone       = 128             // below the stack pointer
	maxRobust     = 2048            // ROBUST_LIST_LIMIT of the kernel
	altStackBytes = 2 * pageSize    // at its top: a signal frame with AVX-512 state takes less
	maxArgBytes   = 64 * pageSize   // of arguments, and of environment
	addressLimit  = uint64(1) << 56 // above every task
)

// earlyPages collects the never-lazy pages of one task: those that lie in its regions.
type earlyPages struct {
	pid     int
	task    uint32
	regions []Region
	mem     *os.File
	have    map[uint64]bool
	list    []Page
}

// readEarly reads the never-lazy pages of a frozen task; threads and addresses are those of its images.
func readEarly(dir string, t *Task) ([]Page, error) {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", t.PID))
	if err != nil {
		return nil, fmt.Errorf("read memory of task %d: %w", t.ID, err)
	}
	defer mem.Close()
	e := &earlyPages{pid: t.PID, task: t.ID, regions: t.lazy(), mem: mem, have: map[uint64]bool{}}
	args, err := images.ReadArgs(dir, t.ID)
	if err != nil {
		return nil, err
	}
	e.add(args.ArgStart, min(args.ArgEnd-args.ArgStart, maxArgBytes))
	e.add(args.EnvStart, min(args.EnvEnd-args.EnvStart, maxArgBytes))
	for _, tid := range t.TIDs {
		th, err := images.ReadThread(dir, tid)
		if err != nil {
			return nil, err
		}
		e.add(th.IP, 16)
		e.add(th.SP-redZone, redZone+pageSize)
		e.add(th.TLS, tcbSize)
		e.add(th.ClearTID, 4)
		e.add(th.RSeq, uint64(th.RSeqSize))
		if top := th.AltStack + th.AltSize; th.AltSize > 0 {
			n := min(th.AltSize, altStackBytes)
			e.add(top-n, n)
		}
		e.robust(th.RobustList)
	}
	return e.list, nil
}

// add reads the pages that hold [addr, addr+n).
func (e *earlyPages) add(addr, n uint64) {
	if n == 0 || addr < pageSize || addr >= addressLimit || n > addressLimit-addr {
		return
	}
	for p := addr &^ (pageSize - 1); p < addr+n; p += pageSize {
		if e.have[p] || !e.lazy(p) {
			continue
		}
		e.have[p] = true
		data := make([]byte, pageSize)
		if m, err := e.mem.ReadAt(data, int64(p)); err != nil || m != pageSize {
			continue // a guard page, or poisoned: served later, with its error
		}
		e.list = append(e.list, Page{Task: e.task, Addr: p, Data: data})
	}
}

func (e *earlyPages) lazy(p uint64) bool {
	lo, hi := 0, len(e.regions)
	for lo < hi {
		mid := (lo + hi) / 2
		if e.regions[mid].End <= p {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo < len(e.regions) && e.regions[lo].Start <= p
}

// robust follows a thread's list of robust futexes (linux/futex.h: struct robust_list_head).
func (e *earlyPages) robust(head uint64) {
	if head == 0 {
		return
	}
	e.add(head, 24)
	b := make([]byte, 24)
	if !e.read(head, b) {
		return
	}
	next := binary.LittleEndian.Uint64(b)
	offset := binary.LittleEndian.Uint64(b[8:])
	entry := func(p uint64) {
		e.add(p, 8)
		e.add(p+offset, 4)
	}
	if pending := binary.LittleEndian.Uint64(b[16:]) &^ 1; pending != 0 {
		entry(pending)
	}
	for range maxRobust {
		next &^= 1 // the lowest bit marks a priority-inheriting lock
		if next == 0 || next == head {
			return
		}
		entry(next)
		if !e.read(next, b[:8]) {
			return
		}
		next = binary.LittleEndian.Uint64(b)
	}
}

func (e *earlyPages) read(addr uint64, b []byte) bool {
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}
	n, err := unix.ProcessVMReadv(e.pid, local, remote, 0)
	return err == nil && n == len(b)
}
