package memory

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// objectBit is set in the IDs of shared objects, which stand among those of tasks.
const objectBit = 1 << 31

// IsObject says whether a TaskMem or a Want is of a shared object. Its addresses are offsets.
func IsObject(id uint32) bool { return id&objectBit != 0 }

// SharedRange is a mapping of a shared object in a task.
type SharedRange struct {
	Start, End uint64
	Object     uint32
	Offset     uint64
}

// object is shared memory. Its pages are filled through a mapping of this process, which no process of the tree can change, and which shows all
// of it: an mm of its own with one segment, whose bits are the object's. The processes that share the object have none: what they map
// decides where a fault belongs, no more. So a wrong guess about their mappings costs a turn, and no byte: a page gets the
// source's bytes for that page, once, or was dropped.
type object struct {
	region   *region
	mm       *mm
	mem      unsafe.Pointer // never touched: Go does not know it
	base     uint64
	dev, ino uint64
	sleepers map[int][]sleeper // threads that wait for a page
}

type sleeper struct {
	m    *mm
	addr uint64
}

func (r *region) shared() bool { return r != nil && r.object != nil }

func (o *object) view() *view { return o.mm.views[o.region] }

// Share maps a shared object: from then on its pages can be filled. f is the object itself, and stays the caller's.
func (e *Engine) Share(id uint32, f *os.File) error {
	e.mu.Lock()
	defer e.unlock()
	t := e.tasks[id]
	switch {
	case e.closed:
		return fmt.Errorf("share memory %#x: %w", id, ErrClosed)
	case t == nil || !IsObject(id) || len(t.regions) != 1 || t.regions[0].start != 0:
		return fmt.Errorf("share memory %#x: %w", id, unix.ESRCH)
	case t.added:
		return fmt.Errorf("share memory %#x: %w", id, unix.EEXIST)
	}
	r := t.regions[0]
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("share memory %#x: %w", id, err)
	}
	if uint64(st.Size) < uint64(r.pages)*pageSize || st.Blocks != 0 {
		return fmt.Errorf("share memory %#x: %d bytes, %d blocks where %d bytes without any are expected: %w", id, st.Size, st.Blocks, uint64(r.pages)*pageSize, unix.EINVAL)
	}
	u, err := openUffd()
	if err != nil {
		return fmt.Errorf("share memory %#x: %w", id, err)
	}
	p, err := unix.MmapPtr(int(f.Fd()), 0, nil, uintptr(r.pages)*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return errors.Join(fmt.Errorf("share memory %#x: map it: %w", id, err), u.close())
	}
	o := &object{region: r, mem: p, base: uint64(uintptr(p)), dev: st.Dev, ino: st.Ino, sleepers: map[int][]sleeper{}}
	if err := u.register(o.base, uint64(r.pages)*pageSize); err != nil {
		return errors.Join(fmt.Errorf("share memory %#x: %w", id, err), u.close(), unix.MunmapPtr(p, uintptr(r.pages)*pageSize))
	}
	m := newMM(id, u)
	m.own, m.settled, m.guesses = o, true, maxGuesses
	m.lay.put(segment{start: o.base, end: o.base + uint64(r.pages)*pageSize, r: r})
	m.adopt(r, newBitset(r.pages), newBitset(r.pages))
	o.mm, r.object = m, o
	e.mms[u.fd] = m
	e.objects = append(e.objects, o)
	t.added = true
	return nil
}

// Join registers the shared ranges of a task with its userfaultfd. It has been added, its objects have been shared, and it has not run.
func (e *Engine) Join(id uint32) error {
	e.mu.Lock()
	defer e.unlock()
	t, m := e.tasks[id], e.taskMM(id)
	if t == nil || m == nil {
		return fmt.Errorf("share memory with task %d: %w", id, unix.ESRCH)
	}
	for _, s := range t.shared {
		ot := e.tasks[s.Object]
		if ot == nil || !ot.added || !IsObject(s.Object) {
			return fmt.Errorf("share memory %#x with task %d: %w", s.Object, id, unix.ENOENT)
		}
		r := ot.regions[0]
		if s.Start >= s.End || (s.Start|s.End|s.Offset)%pageSize != 0 || s.Offset+s.End-s.Start > uint64(r.pages)*pageSize {
			return fmt.Errorf("share memory %#x with task %d at %#x-%#x: %w", s.Object, id, s.Start, s.End, unix.EINVAL)
		}
		if err := m.fd.register(s.Start, s.End-s.Start); err != nil {
			return fmt.Errorf("share memory %#x with task %d at %#x-%#x: %w", s.Object, id, s.Start, s.End, err)
		}
		if was := m.lay.put(segment{start: s.Start, end: s.End, r: r, off: int(s.Offset / pageSize)}); len(was) > 0 {
			e.log.Error("shared memory overlaps private", "task", id, "start", s.Start)
		}
		m.shares = true
		m.changed()
	}
	return nil
}

// answerShared resolves a fault at a page of an object.
func (e *Engine) answerShared(m *mm, addr uint64, o *object, page int) {
	if !o.view().taken.has(page) {
		o.sleep(m, addr, page)
		e.askUrgent(o.region, page)
		return
	}
	e.zeroShared(m, addr, o, page)
}

// zeroShared answers a fault at a page that was filled or dropped: it is there, or zero.
func (e *Engine) zeroShared(m *mm, addr uint64, o *object, page int) {
	switch c := classify(o.mm.fd.zero(o.base+uint64(page)*pageSize, pageSize)); c.act {
	case actDone:
		e.stats.zeroFaults++
	case actSkip:
	default:
		e.log.Error("zero a missing page of shared memory", "object", o.region.task, "page", page, "action", c.act)
		e.shortOf = time.Now().Add(100 * time.Millisecond)
		e.unsettle(m) // again: the thread still waits
		return
	}
	e.servedOne(m, addr)
	m.fd.wake(addr, pageSize)
}

// answerUnknown resolves a fault at an address of which the layout knows nothing, if an object may be there: an mremap has grown or doubled its
// mapping, which no event tells. It says false if only zeros can be there.
func (e *Engine) answerUnknown(m *mm, addr uint64) bool {
	wait := false
	for _, pid := range e.candidates(m) {
		for _, p := range e.objectsAt(pid, addr, addr+pageSize) {
			if !p.o.view().taken.has(p.page) {
				p.o.sleep(m, addr, p.page)
				e.askUrgent(p.o.region, p.page)
				wait = true
			}
		}
	}
	return wait
}

// sleep notes a thread that waits for a page.
func (o *object) sleep(m *mm, addr uint64, page int) {
	if s := (sleeper{m, addr}); !slices.Contains(o.sleepers[page], s) {
		o.sleepers[page] = append(o.sleepers[page], s)
	}
}

// wake lets those go on who wait for pages that are there.
func (o *object) wake(e *Engine, page, n int) {
	o.each(e, page, n, func(s sleeper, _ int) {
		e.servedOne(s.m, s.addr)
		s.m.fd.wake(s.addr, pageSize)
	})
}

// wakeAll lets those go on who wait for pages that will not come: they are zero.
func (o *object) wakeAll(e *Engine, page, n int) {
	o.each(e, page, n, func(s sleeper, page int) { e.zeroShared(s.m, s.addr, o, page) })
}

// each takes the sleepers of pages off the list.
func (o *object) each(e *Engine, page, n int, f func(s sleeper, page int)) {
	if len(o.sleepers) == 0 {
		return
	}
	for i := page; i < page+n; i++ {
		list := o.sleepers[i]
		if len(list) == 0 {
			continue
		}
		delete(o.sleepers, i)
		for _, s := range list {
			if e.mms[s.m.fd.fd] == s.m { // else its descriptor is closed, and its number may be another's
				f(s, i)
			}
		}
	}
}

// askForSleepers asks once more for what threads still wait for.
func (o *object) askForSleepers(e *Engine) {
	v := o.view()
	for page := range o.sleepers {
		if !v.taken.has(page) {
			e.askUrgent(o.region, page)
		}
	}
}

// sharedLeft is how many pages of objects have not been taken.
func (e *Engine) sharedLeft() (n int) {
	for _, o := range e.objects {
		n += o.mm.missing
	}
	return n
}

// dropObjects lets go of the objects when nobody else is left: until then what they miss is made through them.
func (e *Engine) dropObjects() {
	if e.sharedLeft() > 0 || len(e.mms) > len(e.objects) {
		return
	}
	for _, o := range e.objects {
		e.dropMM(o.mm)
	}
}

// unmap is the end of an object.
func (o *object) unmap(e *Engine) {
	if err := unix.MunmapPtr(o.mem, uintptr(o.region.pages)*pageSize); err != nil {
		e.log.Error("unmap shared memory", "object", o.region.task, "err", err)
	}
	for i, x := range e.objects {
		if x == o {
			e.objects = append(e.objects[:i:i], e.objects[i+1:]...)
			break
		}
	}
}
