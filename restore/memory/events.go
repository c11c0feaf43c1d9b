package memory

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/urgent"
)

// settleSpins is how often settle asks again at once before it leaves the lock to others.
const settleSpins = 16

// restSpins is how often in a row it looks whether the mappings are at rest.
const restSpins = 24

// startLoop starts the goroutine that reads events. The lock is held.
func (e *Engine) startLoop() error {
	if e.epoll >= 0 {
		return nil
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make epoll: %w", err)
	}
	kick, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(ep)
		return fmt.Errorf("make eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(kick)}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, kick, &ev); err != nil {
		unix.Close(ep)
		unix.Close(kick)
		return fmt.Errorf("watch eventfd: %w", err)
	}
	e.epoll, e.kick = ep, kick
	e.wg.Add(1)
	go e.loop(ep)
	return nil
}

// wakeLoop makes the loop look at everything once more. The lock is held.
func (e *Engine) wakeLoop() {
	if e.kick >= 0 {
		_, _ = unix.Write(e.kick, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// loop is the only reader of the userfaultfds besides settle, which runs under the lock like it.
func (e *Engine) loop(ep int) {
	defer e.wg.Done()
	defer urgent.Thread()()
	defer e.endWatched()
	evs := make([]unix.EpollEvent, 64)
	timeout := -1
	restless := 0 // rounds in a row with an mm whose mappings were changing
	for {
		n, err := unix.EpollWait(ep, evs, timeout)
		if err != nil && err != unix.EINTR {
			e.log.Error("wait for events", "err", err)
			time.Sleep(10 * time.Millisecond) //nolint:forbidigo // can't happen; it must not spin
			n = 0
		}
		e.lockFirst()
		if e.closed {
			e.unlock()
			return
		}
		readable := e.takeEvents(evs[:max(n, 0)])
		unsettled := false
		for _, m := range e.mms {
			if !m.settled && !e.settle(m) {
				unsettled = true
			}
		}
		next := e.retryDue(time.Now())
		e.pump()
		e.finish()
		e.unlock()
		e.read(readable)
		e.endFailed()
		more := e.work()
		if rest := e.placeSome(); rest > 0 && (next == 0 || rest < next) {
			next = rest
		}
		e.endFailed()

		timeout = -1
		switch {
		case more:
			timeout = 0
		case next > 0:
			timeout = int(next/time.Millisecond) + 1
		}
		if !unsettled {
			restless = 0
			continue
		}
		// Nothing tells when a thread whose event was read has run again: ask again soon.
		timeout = 0
		if restless++; restless > 4 {
			time.Sleep(min(time.Duration(restless)*5*time.Microsecond, time.Millisecond)) //nolint:forbidigo // see above
		}
	}
}

// settle reads and applies m's events until nothing is changing, then answers its faults and fills what was parked. It
// says false if m's mappings are still changing. The lock is held.
func (e *Engine) settle(m *mm) bool {
	if e.holdFork(m) {
		return false
	}
	for spins, rounds := 0, 0; spins < settleSpins && rounds < 16*settleSpins; rounds++ {
		n, err := e.readAll(m)
		if err != nil {
			e.log.Error("read events", "task", m.id, "err", err)
		}
		// The thread whose event was read runs, and may begin the next operation at once: its rest is short. The denser
		// it is looked for the fewer operations get into one batch.
		changing := true
		for range restSpins {
			if changing, err = m.fd.changing(); !changing || err != nil {
				break
			}
		}
		if err != nil {
			e.log.Error("look for changes", "task", m.id, "err", err)
			return false
		}
		if changing {
			if n == 0 {
				spins++
				runtime.Gosched()
			}
			continue
		}
		if !e.applyBatch(m) {
			continue
		}
		m.settled = true
		if h := e.opt.hooks.settled; h != nil {
			h(m)
		}
		e.unpark(m)
		e.answerAll(m)
		if e.mms[m.fd.fd] != m {
			return true // its mm is gone
		}
		if m.settled {
			return true
		}
	}
	return false
}

// readBatch appends what can be read to the batch, and faults to those that wait.
func (e *Engine) readBatch(m *mm) (total int, err error) {
	var buf [32]uffdMsg
	for {
		n, err := e.readSome(m, buf[:])
		if n == 0 || err != nil {
			return total, err
		}
		total += n
	}
}

// readSome reads as much as buf holds.
func (e *Engine) readSome(m *mm, buf []uffdMsg) (int, error) {
	n, err := m.fd.readEvents(buf)
	if n == 0 || err != nil {
		return 0, err
	}
	m.round++
	for i := range buf[:n] {
		e.note(m, &buf[i])
	}
	return n, nil
}

func (e *Engine) note(m *mm, g *uffdMsg) {
	switch g.event {
	case evPagefault:
		addr := g.arg[1] &^ (pageSize - 1)
		if _, ok := m.waiting[addr]; !ok {
			m.waiting[addr] = time.Now()
		}
		e.stats.faults++
	case evFork:
		u, err := newUffd(int(uint32(g.arg[0])))
		if err != nil {
			// Still ours: it must stay open, and without O_NONBLOCK epoll would spin on it.
			e.log.Error("child's userfaultfd", "task", m.id, "err", err)
			return
		}
		m.batch = append(m.batch, event{kind: evFork, child: u, round: m.round})
		m.forkRead()
		e.stats.forks++
	case evRemap:
		m.batch = append(m.batch, event{kind: evRemap, from: g.arg[0], to: g.arg[1], len: g.arg[2], round: m.round})
		e.stats.events++
	case evRemove, evUnmap:
		if g.event == evRemove && m.shares {
			e.removed(m, g.arg[0], g.arg[1])
		}
		m.batch = append(m.batch, event{kind: g.event, start: g.arg[0], end: g.arg[1], round: m.round})
		e.stats.events++
	default:
		e.log.Error("unknown event", "task", m.id, "event", g.event)
	}
}

// applyBatch applies the batch to the layout in the order that fits. It says false if the mappings changed meanwhile.
func (e *Engine) applyBatch(m *mm) bool {
	if len(m.batch) == 0 {
		return true
	}
	order, err := e.orderBatch(m)
	if errors.Is(err, unix.EAGAIN) {
		return false
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		e.log.Error("find the order of events", "task", m.id, "err", err)
	}
	batch := m.batch
	m.batch = nil
	if order == nil {
		// The mm is gone: nothing is filled any more. What it forked before lives on.
		order = make([]int, len(batch))
		for i := range order {
			order[i] = i
		}
	}
	var children []*mm
	for _, i := range order {
		if c := e.apply(m, &batch[i]); c != nil {
			children = append(children, c)
		}
	}
	if len(children) > 0 {
		e.inherit(m, children)
	}
	return true
}

// orderBatch is the order of m's batch, as indexes into it. EAGAIN: the mappings are changing again.
func (e *Engine) orderBatch(m *mm) ([]int, error) {
	ops := operations(m.batch)
	var changes, forks []op
	var readAt []int // how many changes were read before each fork
	for _, o := range ops {
		if o.kind == evFork {
			forks = append(forks, o)
			readAt = append(readAt, len(changes))
		} else {
			changes = append(changes, o)
		}
	}
	order, fits, err := orderOps(&m.lay, changes, m.fd.registered)
	if err != nil {
		return nil, err
	}
	at := make([]int, len(forks))
	for i, f := range forks {
		// A child that has begun to change its own mappings says nothing about then.
		child := m.batch[f.events[0]].child
		p, err := placeFork(&m.lay, changes, order, readAt[i], child.registered)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ESRCH) {
			return nil, err
		}
		if changing, cerr := child.changing(); err != nil || cerr != nil || changing {
			p = readAt[i]
		}
		at[i] = p
	}
	// What was asked above is worth something only if nothing is changing now, and so has not since the batch was complete:
	// an operation stays counted until its event is read, and nobody else reads. (A probe alone can miss it: ENOENT comes
	// from a VMA that was unmapped after the count had been looked at.)
	if changing, err := m.fd.changing(); err != nil {
		return nil, err
	} else if changing {
		return nil, unix.EAGAIN
	}
	if !fits {
		e.stats.misfits++
		e.log.Warn("no order of events fits", "task", m.id, "events", m.batch)
	}
	var out []int
	for k := 0; k <= len(order); k++ {
		for i, f := range forks {
			if at[i] == k {
				out = append(out, f.events...)
			}
		}
		if k < len(order) {
			out = append(out, changes[order[k]].events...)
		}
	}
	return out, nil
}

// inherit takes from the children what fork does not give them: MADV_WIPEONFORK memory is zero there, MADV_DONTFORK
// memory is not mapped. Only smaps shows both. The flags are those of now, found by the pages that they cover, which an
// mremap since the fork has not changed.
func (e *Engine) inherit(m *mm, children []*mm) {
	if m.missing == 0 {
		return // nothing of it is asked for any more, and missing means zero
	}
	if m.id == 0 {
		e.log.Warn("a process of unknown pid forked: its flags for fork are not seen")
		return
	}
	vmas, err := readVMAs(e.opt.Proc, m.id)
	if err != nil {
		e.log.Warn("a process forked: its flags for fork cannot be read", "task", m.id, "err", err)
		return
	}
	for _, v := range vmas {
		wiped, absent := v.has("wf"), v.has("dc")
		if !wiped && !absent {
			continue
		}
		for _, s := range m.lay.parts(v.start, v.end) {
			if s.r == nil {
				continue
			}
			for _, c := range children {
				if view := c.views[s.r]; view != nil {
					view.take(s.off, s.page(s.end))
					view.data.clear(s.off, s.page(s.end))
				}
			}
		}
	}
}

// apply applies one event and lets those who wait in its range fault again: what they waited for is elsewhere now.
func (e *Engine) apply(m *mm, ev *event) (child *mm) {
	switch ev.kind {
	case evFork:
		c := m.forkTo(ev.child)
		clear(e.aliens)
		if err := e.addMM(c); err != nil {
			e.log.Error("watch a forked child", "task", m.id, "err", err)
		}
		e.wakeLoop()
		return c
	case evRemap:
		if n := m.drop(m.lay.move(ev.from, ev.to, ev.len)); n > 0 {
			e.log.Error("mremap onto memory that was not seen unmapped", "task", m.id, "pages", n, "from", ev.from, "to", ev.to)
			e.stats.dropped += uint64(n)
		}
		e.wakeRange(m, ev.from, ev.from+ev.len)
	case evUnmap:
		e.stats.dropped += uint64(m.drop(m.lay.cut(ev.start, ev.end)))
		e.wakeRange(m, ev.start, ev.end)
	case evRemove:
		// Posted before the kernel throws the pages away: the bits are set first.
		e.stats.dropped += uint64(m.removed(ev.start, ev.end))
		e.wakeRange(m, ev.start, ev.end)
	}
	m.changed()
	return nil
}

func (e *Engine) wakeRange(m *mm, start, end uint64) {
	for a := range m.waiting {
		if a >= start && a < end {
			delete(m.waiting, a)
		}
	}
	m.fd.wake(start, end-start)
}
