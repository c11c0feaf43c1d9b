package memory

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// answerAll does what can be done for the threads of m that wait. m is settled.
func (e *Engine) answerAll(m *mm) {
	for addr := range m.waiting {
		if !m.settled {
			return
		}
		e.answer(m, addr)
	}
}

// answer resolves a fault at once if nothing has to come from the source, else sees that the page is asked for.
func (e *Engine) answer(m *mm, addr uint64) {
	s, ok := m.lay.find(addr)
	if ok && s.r != nil && s.r.object != nil {
		e.answerShared(m, addr, s.r.object, s.page(addr))
		return
	}
	if (!ok || s.r == nil) && m.shares && e.answerUnknown(m, addr) {
		return
	}
	if !ok || s.r == nil || m.views[s.r].taken.has(s.page(addr)) {
		e.zeroMissing(m, addr)
		return
	}
	e.askUrgent(s.r, s.page(addr))
}

// zeroMissing answers a fault at a page that the source has nothing for, or whose bytes were taken before.
func (e *Engine) zeroMissing(m *mm, addr uint64) {
	switch o := classify(m.fd.zero(addr, pageSize)); o.act {
	case actDone:
		e.stats.zeroFaults++
		e.served(m, addr, pageSize)
	case actSettle:
		e.unsettle(m)
	case actSkip, actMissing:
		// There already, or unmapped: the thread has to look again by itself.
		e.served(m, addr, pageSize)
		m.fd.wake(addr, pageSize)
	case actDead:
		e.mmGone(m)
	default:
		e.log.Error("zero a missing page", "task", m.id, "addr", addr, "action", o.act)
		e.unsettle(m)
	}
}

// unsettle makes the loop settle m before anything else is filled.
func (e *Engine) unsettle(m *mm) {
	m.settled = false
	e.wakeLoop()
}

// served takes the faults of the range off the list.
func (e *Engine) served(m *mm, addr, length uint64) {
	if m.own != nil {
		m.own.wake(e, int((addr-m.own.base)/pageSize), int(length/pageSize))
		return
	}
	if len(m.waiting) == 0 {
		return
	}
	if int(length/pageSize) < len(m.waiting) {
		for a := addr; a < addr+length; a += pageSize {
			e.servedOne(m, a)
		}
		return
	}
	for a := range m.waiting {
		if a >= addr && a < addr+length {
			e.servedOne(m, a)
		}
	}
}

func (e *Engine) servedOne(m *mm, a uint64) {
	if t, ok := m.waiting[a]; ok {
		e.stats.latency.add(time.Since(t))
		delete(m.waiting, a)
	}
}

// spread brings a run to every mm of the family that misses pages of it.
func (e *Engine) spread(r *region, page int, run Run, data []byte) {
	for _, v := range r.views {
		if v.taken.left == 0 {
			continue
		}
		if !v.mm.settled {
			e.park(v.mm, r, page, run, data)
			continue
		}
		_ = e.fillRun(v, page, run, data, false)
	}
}

// leaveZero marks pages as taken in every mm of the family without filling them: what is missing after that is zero. Who
// waits for one of them gets it now, or when its mm is settled.
func (e *Engine) leaveZero(r *region, page, n int) {
	for _, v := range r.views {
		e.stats.pagesZero += uint64(v.take(page, page+n))
		if v.mm.settled && len(v.mm.waiting) > 0 {
			e.answerAll(v.mm)
		}
	}
	if r.object != nil {
		r.object.wakeAll(e, page, n)
	}
}

// park keeps a run until m is settled. The bytes are copied: the slot that they lie in is used again.
func (e *Engine) park(m *mm, r *region, page int, run Run, data []byte) {
	m.parked = append(m.parked, parked{r: r, page: page, run: run, data: append([]byte(nil), data...)})
	e.parked += len(data)
	e.wakeLoop()
}

// unpark fills what was parked.
func (e *Engine) unpark(m *mm) {
	list := m.parked
	m.parked = nil
	for _, p := range list {
		e.parked -= len(p.data)
	}
	for _, p := range list {
		v := p.r.viewOf(m)
		if v == nil {
			return // gone meanwhile
		}
		if !m.settled {
			e.park(m, p.r, p.page, p.run, p.data)
			continue
		}
		_ = e.fillRun(v, p.page, p.run, p.data, false)
	}
}

func (r *region) viewOf(m *mm) *view {
	for _, v := range r.views {
		if v.mm == m {
			return v
		}
	}
	return nil
}

// fillRun fills those pages of a run that the mm misses. If the mappings turn out to be changing the rest is parked.
func (e *Engine) fillRun(v *view, page int, run Run, data []byte, strict bool) (err error) {
	m, r := v.mm, v.region
	type piece struct {
		addr    uint64
		page, n int
	}
	var todo []piece
	m.show(r, page, int(run.Pages), func(addr uint64, first, n int) {
		for i, end := first, first+n; ; {
			i = v.taken.nextClear(i, end)
			if i == end {
				return
			}
			j := v.taken.nextSet(i, end)
			todo = append(todo, piece{addr + uint64(i-first)*pageSize, i, j - i})
			i = j
		}
	})
	for _, p := range todo {
		var d []byte
		if run.Kind == Data {
			d = data[(p.page-page)*pageSize : (p.page-page+p.n)*pageSize]
		}
		if perr := e.fill(v, p.addr, p.page, p.n, run.Kind, d, strict); perr != nil && err == nil {
			err = perr
		}
	}
	return err
}

// fill fills n contiguous pages, none of which has been taken.
func (e *Engine) fill(v *view, addr uint64, page, n int, kind RunKind, data []byte, strict bool) error {
	m, r := v.mm, v.region
	step := n // pages in one call: halved where a VMA ends
	for i := 0; i < n; {
		if !m.settled {
			e.park(m, r, page+i, Run{Kind: kind, Pages: uint32(n - i)}, tail(data, i))
			return nil
		}
		step = min(step, n-i)
		a := addr + uint64(i)*pageSize
		now := e.skipGuards(v, a, page+i, step)
		if now == 0 {
			for i < n && v.taken.has(page+i) {
				i++
			}
			continue
		}
		suspects := e.suspects(m, a)
		var res result
		switch kind {
		case Data:
			res = m.fd.copy(a, data[i*pageSize:(i+now)*pageSize])
		default: // a guard that CRIU has made again was skipped above; poison is the next best
			res = m.fd.poison(a, uint64(now)*pageSize)
		}
		e.convict(m, a, suspects)
		o := classify(res)
		if k := int(o.done / pageSize); k > 0 {
			v.take(page+i, page+i+k)
			if kind == Data {
				v.data.set(page+i, page+i+k)
				e.stats.pagesCopied += uint64(k)
			}
			e.served(m, a, uint64(k)*pageSize)
			i += k
		}
		switch o.act {
		case actDone, actGoOn:
			step *= 2
		case actSkip:
			if m.own != nil {
				e.stats.strays++ // nobody else may make a page
				e.log.Error("shared memory has a page that has not been brought", "object", r.task, "page", page+i)
			}
			v.take(page+i, page+i+1)
			e.served(m, addr+uint64(i)*pageSize, pageSize)
			m.fd.wake(addr+uint64(i)*pageSize, pageSize)
			i++
			step = n // what follows is a new stretch
		case actSettle:
			e.unsettle(m) // the next turn parks the rest
		case actHalve:
			step = (now + 1) / 2
		case actMissing:
			if changing, err := m.fd.changing(); err == nil && changing {
				e.unsettle(m)
				continue
			}
			// Nothing is changing and all events were read: the layout says that the page is here, the kernel that it
			// is not. It stays missing, and the drain does not end: that is seen, a silent zero is not.
			e.stats.lost++
			e.holdBulk(time.Second)
			e.log.Error("no registered memory where the layout has a page", "task", m.id, "addr", addr+uint64(i)*pageSize, "region", r.start, "page", page+i)
			if strict {
				return fmt.Errorf("fill page at %#x: %w", addr+uint64(i)*pageSize, unix.ENOENT)
			}
			i++
			step = n
		case actDead:
			e.mmGone(m)
			return nil
		default:
			// Mostly no memory (a cgroup's limit): nothing is asked for in a hurry.
			e.shortOf = time.Now().Add(100 * time.Millisecond)
			e.holdBulk(100 * time.Millisecond)
			e.log.Error("fill memory", "task", m.id, "addr", a, "pages", now, "err", res.errno)
			if strict {
				return fmt.Errorf("fill %d pages at %#x: %w", now, a, res.errno)
			}
			return nil
		}
	}
	return nil
}

func tail(data []byte, page int) []byte {
	if data == nil {
		return nil
	}
	return data[page*pageSize:]
}

// Place fills pages that came with the images at once, and marks them taken. The address is the process's own now.
func (e *Engine) Place(id uint32, addr uint64, data []byte) error {
	if addr%pageSize != 0 || len(data)%pageSize != 0 || len(data) == 0 {
		return fmt.Errorf("place %d bytes at %#x: %w", len(data), addr, unix.EINVAL)
	}
	deadline := time.Now().Add(30 * time.Second)
	e.mu.Lock()
	defer e.unlock()
	m := e.taskMM(id)
	if m == nil {
		return fmt.Errorf("place %d bytes at %#x in task %d: %w", len(data), addr, id, unix.ESRCH)
	}
	for !m.settled && !e.settle(m) {
		if time.Now().After(deadline) {
			return fmt.Errorf("place %d bytes at %#x in task %d: %w", len(data), addr, id, unix.EAGAIN)
		}
		e.unlock()
		time.Sleep(50 * time.Microsecond) //nolint:forbidigo // nothing tells when mappings have settled
		e.mu.Lock()
	}
	covered := 0
	for _, s := range m.lay.parts(addr, addr+uint64(len(data))) {
		if s.r == nil {
			continue
		}
		n := int((s.end - s.start) / pageSize)
		covered += n
		v := m.views[s.r]
		if s.r.object != nil {
			v = s.r.object.view()
		}
		if err := e.fillRun(v, s.off, Run{Kind: Data, Pages: uint32(n)}, data[s.start-addr:s.end-addr], true); err != nil {
			return fmt.Errorf("place %d bytes at %#x in task %d: %w", len(data), addr, id, err)
		}
	}
	if covered != len(data)/pageSize {
		return fmt.Errorf("place %d bytes at %#x in task %d: outside its lazy memory: %w", len(data), addr, id, unix.EFAULT)
	}
	return nil
}

func (e *Engine) taskMM(id uint32) *mm {
	for _, m := range e.mms {
		if m.id == id && !m.child {
			return m
		}
	}
	return nil
}

// Anchor gives each region its anon_vma, as it had one at the source, before its process runs. A mapping that is split (mprotect, madvise)
// without one gets several as pages come to its parts, and then stays several mappings when they are alike again: an mremap of the whole
// fails with EFAULT. The kernel makes it for any fill, also for one that fails because its bytes can't be read (mm/userfaultfd.c,
// find_vma_and_prepare_anon).
func (e *Engine) Anchor() {
	e.mu.Lock()
	defer e.unlock()
	for _, m := range e.mms {
		for _, s := range m.lay.segs {
			if s.r.shared() {
				continue
			}
			_, _ = m.fd.registered(s.start, pageSize) // what is wrong shows when it is filled
		}
	}
}

// mmGone forgets an mm that has exited or been replaced by execve.
func (e *Engine) mmGone(m *mm) {
	e.log.Debug("mm is gone", "task", m.id, "left", m.missing)
	for len(m.batch) > 0 && !e.applyBatch(m) {
	} // a child that it forked lives on
	if m.id != 0 && m.missing > 0 && !executes(e.opt.Proc, m.id) {
		e.gone[m.id] = true
	}
	e.dropMM(m)
}

// dropMM forgets m and has its descriptor closed: the mm is gone, or all of it is there.
func (e *Engine) dropMM(m *mm) {
	if e.mms[m.fd.fd] != m {
		return
	}
	delete(e.mms, m.fd.fd)
	m.settled = false
	for r := range m.views {
		for i, v := range r.views {
			if v.mm == m {
				r.views = append(r.views[:i:i], r.views[i+1:]...)
				break
			}
		}
	}
	for _, p := range m.parked {
		e.parked -= len(p.data)
	}
	m.parked = nil
	for i := range m.batch {
		if c := m.batch[i].child; c != nil {
			e.closing = append(e.closing, c)
		}
	}
	m.batch = nil
	m.pages.close()
	m.pages = nil
	if m.own != nil {
		m.own.unmap(e)
	}
	_ = unix.EpollCtl(e.epoll, unix.EPOLL_CTL_DEL, m.fd.fd, nil)
	e.closing = append(e.closing, m.fd)
}
