package memory

import (
	"fmt"
	"math/bits"
	"os"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// Pages that were copied while the process still ran at the source lie in a memfd (Copied): bytes that are here already. A thread that
// faults at one gets it at once, the rest is placed piece by piece by the loop, which looks for faults in between, and what has been placed is freed.
// To the engine they are pages in flight, so the bulk does not ask for them. One that can't be placed is asked from the source like all others.

// CopiedPages are adjacent pages of a source task that lie in the buffer from Off on.
type CopiedPages struct {
	Task  uint32
	Pages uint32
	Addr  uint64
	Off   uint64
}

// buffer is what was copied ahead of all regions.
type buffer struct {
	mem     []byte
	placing bool
	todo    []*region
	page    int       // in the first of todo
	left    int       // pages
	rests   time.Time // until then nothing is placed but for faults
	freed   struct{ start, end uint64 }
	free    chan [2]uint64
}

// copiedRegion says where pages of a region lie in the buffer: those whose bits are set.
type copiedRegion struct {
	bits *bitset
	runs []copiedRun // in order
}

type copiedRun struct {
	page, n int
	off     uint64
}

const (
	copiedPiece = 256     // pages that are placed before the loop looks at everything else
	freePiece   = 1 << 20 // bytes that are freed at a time
)

// Copied gives the engine pages that are as they were at the freeze, in order of task and address. f stays the caller's. Pages outside of the tasks'
// regions, and of shared memory, are passed over. It comes once, before StartBulk.
func (e *Engine) Copied(f *os.File, list []CopiedPages) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("take pages copied ahead: %w", err)
	}
	size := uint64(st.Size())
	for _, x := range list {
		if x.Addr%pageSize != 0 || x.Off%pageSize != 0 || x.Pages == 0 || x.Off >= size || uint64(x.Pages)*pageSize > size-x.Off || x.Addr >= 1<<56 {
			return fmt.Errorf("take pages copied ahead: %d at %#x of task %d, %d bytes into %d: %w", x.Pages, x.Addr, x.Task, x.Off, size, unix.EINVAL)
		}
	}
	if len(list) == 0 {
		return nil
	}
	mine, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("take pages copied ahead: %w", err)
	}
	mem, err := unix.Mmap(mine, 0, int(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		unix.Close(mine)
		return fmt.Errorf("map pages copied ahead: %w", err)
	}
	e.mu.Lock()
	defer e.unlock()
	if e.closed || e.buffer != nil || e.bulk.on {
		_, _ = unix.Munmap(mem), unix.Close(mine)
		return fmt.Errorf("take pages copied ahead: not now: %w", unix.EBUSY)
	}
	b := &buffer{mem: mem, free: make(chan [2]uint64, 1024)}
	e.buffer = b
	e.wg.Go(func() { b.release(mine) })
	for _, x := range list {
		t := e.tasks[x.Task]
		if t == nil || IsObject(x.Task) {
			continue
		}
		end := x.Addr + uint64(x.Pages)*pageSize
		i := sort.Search(len(t.regions), func(i int) bool { return t.regions[i].start+uint64(t.regions[i].pages)*pageSize > x.Addr })
		for ; i < len(t.regions) && t.regions[i].start < end; i++ {
			b.add(t.regions[i], x)
		}
	}
	return nil
}

// add takes what of x lies in r.
func (b *buffer) add(r *region, x CopiedPages) {
	lo, hi := max(x.Addr, r.start), min(x.Addr+uint64(x.Pages)*pageSize, r.start+uint64(r.pages)*pageSize)
	first, n := int((lo-r.start)/pageSize), int((hi-lo)/pageSize)
	if r.copied == nil {
		r.copied = &copiedRegion{bits: newBitset(r.pages)}
		b.todo = append(b.todo, r)
	}
	if k := len(r.copied.runs); k > 0 && r.copied.runs[k-1].page+r.copied.runs[k-1].n > first {
		return // out of order
	}
	r.copied.runs = append(r.copied.runs, copiedRun{page: first, n: n, off: x.Off + lo - x.Addr})
	b.left += r.copied.bits.set(first, first+n)
	r.flight.set(first, first+n)
}

// release frees what has been placed, and in the end the rest.
func (b *buffer) release(fd int) {
	for p := range b.free {
		_ = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(p[0]), int64(p[1])) // else it stays until the end
	}
	_ = unix.Munmap(b.mem) // nobody has it any more: see endCopied
	_ = unix.Close(fd)
}

// PlaceCopied lets the loop place what was copied ahead; faults get theirs before, too.
func (e *Engine) PlaceCopied() {
	e.mu.Lock()
	defer e.unlock()
	if e.buffer != nil {
		e.buffer.placing = true
	}
	e.wakeLoop()
}

// endCopied is when nothing is left in the buffer. The lock is held.
func (e *Engine) endCopied() {
	if e.buffer == nil {
		return
	}
	for _, r := range e.regions {
		r.copied = nil
	}
	close(e.buffer.free)
	e.buffer = nil
}

// at finds the pages from page on that are in the buffer one behind the other, n at most, and their bytes.
func (b *buffer) at(r *region, page, n int) (int, []byte) {
	a := r.copied
	i := sort.Search(len(a.runs), func(i int) bool { return a.runs[i].page+a.runs[i].n > page })
	run := a.runs[i]
	n = a.bits.nextClear(page, min(page+n, run.page+run.n)) - page
	off := run.off + uint64(page-run.page)*pageSize
	return n, b.mem[off : off+uint64(n)*pageSize : off+uint64(n)*pageSize]
}

// place fills pages from the buffer wherever they are missing. They are not in it any more after that.
func (e *Engine) place(r *region, page, n int, data []byte) {
	r.copied.bits.clear(page, page+n)
	r.flight.clear(page, page+n)
	e.buffer.left -= n
	e.stats.copied += uint64(n)
	e.spread(r, page, Run{Kind: Data, Pages: uint32(n)}, data)
}

// fromCopied serves a fault from the buffer, and what lies around. It says false if the page still has to be asked for.
func (e *Engine) fromCopied(r *region, page int) bool {
	if r.copied == nil || !r.copied.bits.has(page) {
		return false
	}
	first := page - page%e.opt.FaultPages
	last := min(first+e.opt.FaultPages, r.pages)
	for i := page; i > first; i-- {
		if !r.copied.bits.has(i - 1) {
			first = i
			break
		}
	}
	for at := first; at < last && r.copied.bits.has(at); {
		n, data := e.buffer.at(r, at, last-at)
		e.place(r, at, n, data)
		at += n
	}
	return !r.missing(page)
}

// placeSome places a piece of the buffer, in the loop, which looks for faults in between, and says after which rest it wants to go on; 0: not. The loop
// runs before all ordinary threads (package urgent), those of the tree among them, so it rests at least for as long as it has worked. The lock is not
// held.
func (e *Engine) placeSome() (rest time.Duration) {
	e.mu.Lock()
	defer e.unlock()
	began := time.Now()
	if b := e.buffer; b != nil && began.Before(b.rests) {
		return b.rests.Sub(began)
	}
	fresh := true
	for budget := copiedPiece; budget > 0; {
		b := e.buffer
		if b == nil || !b.placing || e.closed || e.parked > maxParked || time.Now().Before(e.bulk.resumes) {
			return 0 // who changes that wakes the loop
		}
		r, page := b.next()
		if r == nil { // what could not be placed is asked for now
			e.endCopied()
			e.pump()
			e.finish()
			return 0
		}
		n, data := b.at(r, page, budget)
		if fresh { // the kernel copies pages that this process has mapped in one go
			fresh = false
			e.unlock()
			_ = unix.Madvise(data, unix.MADV_POPULATE_READ) // else they are mapped one by one
			e.mu.Lock()
			continue
		}
		n = min(n, bulkPiece)
		e.place(r, page, n, data[:n*pageSize])
		b.freeing(r, page, n)
		budget -= n
		e.faultsBetween()
	}
	rest = max(time.Since(began), 1)
	if e.buffer != nil {
		e.buffer.rests = time.Now().Add(rest)
	}
	return rest
}

// next is the next page in the buffer.
func (b *buffer) next() (*region, int) {
	for len(b.todo) > 0 {
		r := b.todo[0]
		if p := r.copied.bits.nextSet(b.page, r.pages); p < r.pages {
			b.page = p
			return r, p
		}
		b.todo, b.page = b.todo[1:], 0
	}
	return nil, 0
}

// freeing notes that pages have been placed, and has them freed when there are enough. What faults have taken out is freed with its neighbours.
func (b *buffer) freeing(r *region, page, n int) {
	a := r.copied
	i := sort.Search(len(a.runs), func(i int) bool { return a.runs[i].page+a.runs[i].n > page })
	start := a.runs[i].off + uint64(page-a.runs[i].page)*pageSize
	end := start + uint64(n)*pageSize
	if start == b.freed.end && end-b.freed.start < freePiece {
		b.freed.end = end
		return
	}
	if b.freed.end > b.freed.start {
		select {
		case b.free <- [2]uint64{b.freed.start, b.freed.end - b.freed.start}:
		default: // it comes at the end
		}
	}
	b.freed.start, b.freed.end = start, end
}

// remote is how many pages have to come from the source.
func (e *Engine) remote() (n int) {
	for _, r := range e.regions {
		for _, v := range r.views {
			n += v.taken.left
			if r.copied == nil {
				continue
			}
			for i := range (r.pages + 63) / 64 {
				n -= bits.OnesCount64(r.copied.bits.word(i) &^ v.taken.word(i))
			}
		}
	}
	return n
}

// Filled is closed when nothing has to come from the source any more: what is missing was copied ahead. After StartBulk.
func (e *Engine) Filled() <-chan struct{} {
	e.mu.Lock()
	defer e.unlock()
	if e.filled == nil {
		e.filled = make(chan struct{})
		e.wakeLoop()
	}
	return e.filled
}

// lookFilled looks whether it is so. The lock is held.
func (e *Engine) lookFilled() {
	if e.filled == nil || !e.bulk.on || len(e.wants) > 0 || e.full {
		return
	}
	for _, t := range e.tasks {
		if !t.added {
			return
		}
	}
	for _, m := range e.mms {
		if len(m.parked) > 0 {
			return
		}
	}
	if e.remote() > 0 {
		return
	}
	e.full = true
	close(e.filled)
}
