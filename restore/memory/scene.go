package memory

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A REMOVE event of shared memory says nothing about whether pages go: it comes for MADV_REMOVE, which drops them for everybody, and for
// MADV_DONTNEED, after which all are still there. Who knows is the thread that makes the call: it waits until the event has been read. So who
// is in such a call is looked at before each read that may bring an event. In a process with other threads one of those could make a call
// between the look and the read: the tree is stopped meanwhile.

// scene is what was under way when nobody could begin anything else.
type scene struct{ acts []act }

// act is a madvise(2) that has not ended.
type act struct {
	start, end uint64
	removes    bool
	parts      []placed // what it drops
}

// placed is a range of an object in an address space.
type placed struct {
	start, end uint64
	o          *object
	page       int
}

func (p placed) clip(start, end uint64) placed {
	c := placed{start: max(start, p.start), end: min(end, p.end), o: p.o}
	c.page = p.page + int((c.start-p.start)/pageSize)
	return c
}

const sysProcessMadvise = 440

// stillWait bounds how long a thread may take from the event that it posts, or from a stop, to its sleep.
const stillWait = time.Second

// readAll reads what there is.
func (e *Engine) readAll(m *mm) (int, error) {
	if m.shares && e.sharedLeft() > 0 {
		return e.readWatching(m)
	}
	return e.readBatch(m)
}

// readWatching is readBatch for an mm that shares memory which is not all there. Faults are read first (fs/userfaultfd.c, userfaultfd_ctx_read).
func (e *Engine) readWatching(m *mm) (total int, err error) {
	var buf [32]uffdMsg
	for {
		changing, err := m.fd.changing()
		if err != nil {
			return total, err
		}
		n, err := m.fd.pending()
		if err != nil {
			return total, err
		}
		var goOn func()
		if changing {
			if !m.fd.ready() {
				return total, nil
			}
			var all bool
			m.scene, all, goOn = e.look(m)
			if n = max(n, 1); all {
				n = len(buf)
			}
		}
		got := 0
		if n > 0 {
			got, err = e.readSome(m, buf[:min(n, len(buf))])
		}
		m.scene = nil
		if goOn != nil {
			goOn()
		}
		total += got
		if got == 0 || err != nil {
			return total, err
		}
	}
}

// look looks at all threads that may have posted an event of m. all: no other can until goOn has been called.
func (e *Engine) look(m *mm) (s *scene, all bool, goOn func()) {
	s = &scene{}
	pids := e.candidates(m)
	threads := 0
	for _, pid := range pids {
		threads += len(threadsOf(e.opt.Proc, pid))
	}
	if threads > 1 && e.opt.Quiesce != nil {
		if err := e.opt.Quiesce(true); err != nil {
			e.log.Error("stop the tree for a look", "err", err)
		}
		all = true
		goOn = func() {
			if err := e.opt.Quiesce(false); err != nil {
				e.log.Error("let the tree go on", "err", err)
			}
		}
	}
	late := time.Now().Add(stillWait)
	for _, pid := range pids {
		for _, tid := range threadsOf(e.opt.Proc, pid) {
			e.lookAt(s, pid, tid, late)
		}
	}
	return s, all, goOn
}

// lookAt adds what a thread does, when it has come to rest.
func (e *Engine) lookAt(s *scene, pid uint32, tid string, late time.Time) {
	path := filepath.Join(e.opt.Proc, strconv.FormatUint(uint64(pid), 10), "task", tid, "syscall")
	var f []string
	for {
		b, err := os.ReadFile(path) // number and arguments in hexadecimal, or "running"
		if err != nil {
			return // it has ended
		}
		if f = strings.Fields(string(b)); len(f) != 1 || f[0] != "running" {
			break
		}
		if time.Now().After(late) {
			e.log.Warn("a thread does not come to rest", "task", pid, "thread", tid)
			return
		}
		time.Sleep(5 * time.Microsecond) //nolint:forbidigo // nothing tells when a thread sleeps
	}
	if len(f) < 6 {
		return
	}
	arg := func(i int) uint64 {
		v, _ := strconv.ParseUint(f[1+i], 0, 64)
		return v
	}
	a := act{}
	switch f[0] {
	case strconv.Itoa(unix.SYS_MADVISE):
		a.start, a.end = arg(0), (arg(0)+arg(1)+pageSize-1)&^(pageSize-1)
		a.removes = uint32(arg(2)) == unix.MADV_REMOVE
	case strconv.Itoa(sysProcessMadvise): // its ranges lie in its memory
		a.end = ^uint64(0)
		a.removes = uint32(arg(3)) == unix.MADV_REMOVE
	default:
		return
	}
	if a.removes {
		a.parts = e.objectsAt(pid, a.start, a.end)
	}
	s.acts = append(s.acts, a)
}

// removed drops from the objects what a REMOVE event throws away, before its thread can have done so: the lock is held from the read on, so that
// nothing is filled in between. A MADV_REMOVE that is under way drops its pages in any case, so that it may be another's event.
func (e *Engine) removed(m *mm, start, end uint64) {
	known := false
	if m.scene != nil {
		for _, a := range m.scene.acts {
			if a.start > start || a.end < end {
				continue
			}
			known = true
			for _, p := range a.parts {
				if p.start < end && start < p.end {
					p.clip(start, end).drop(e)
				}
			}
		}
	}
	if known || e.sharedLeft() == 0 {
		return
	}
	for _, pid := range e.candidates(m) {
		if len(e.objectsAt(pid, start, end)) > 0 {
			e.stats.unsure++
			e.log.Error("an event of shared memory whose call was not seen; its pages are kept", "task", m.id, "start", start, "end", end)
			return
		}
	}
}

func (p placed) drop(e *Engine) {
	v, last := p.o.view(), p.page+int((p.end-p.start)/pageSize)
	e.stats.dropped += uint64(v.take(p.page, last))
	v.data.clear(p.page, last)
	p.o.wakeAll(e, p.page, last-p.page)
}

// candidates are the processes that may have m: for a child those that nobody is known to be and that have mapped an object, as it has.
func (e *Engine) candidates(m *mm) (pids []uint32) {
	if m.id != 0 {
		return []uint32{m.id}
	}
	for _, pid := range e.strangers() {
		switch {
		case e.aliens[pid]:
		case len(e.objectsAt(pid, 0, ^uint64(0))) > 0:
			pids = append(pids, pid)
		default:
			if e.aliens == nil {
				e.aliens = map[uint32]bool{}
			}
			e.aliens[pid] = true
		}
	}
	return pids
}

func threadsOf(proc string, pid uint32) (tids []string) {
	d, err := os.Open(filepath.Join(proc, strconv.FormatUint(uint64(pid), 10), "task"))
	if err != nil {
		return nil
	}
	defer d.Close()
	tids, _ = d.Readdirnames(-1) // it may end meanwhile
	return tids
}

// objectsAt lists the objects that a process has mapped in a range.
func (e *Engine) objectsAt(pid uint32, start, end uint64) (list []placed) {
	dir := filepath.Join(e.opt.Proc, strconv.FormatUint(uint64(pid), 10))
	b, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err == nil && len(b) == 0 { // its first thread has ended
		for _, tid := range threadsOf(e.opt.Proc, pid) {
			if b, err = os.ReadFile(filepath.Join(dir, "task", tid, "maps")); err == nil && len(b) > 0 {
				break
			}
		}
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		p, ok := e.parsePlaced(s.Text())
		if ok && p.start < end && start < p.end {
			list = append(list, p.clip(start, end))
		}
	}
	return list
}

// parsePlaced reads a line of maps: START-END perms OFFSET MAJOR:MINOR INODE path.
func (e *Engine) parsePlaced(line string) (p placed, ok bool) {
	f := strings.Fields(line)
	if len(f) < 5 || !strings.HasSuffix(f[1], "s") {
		return p, false
	}
	var offset, ino uint64
	var major, minor uint32
	if n, _ := fmt.Sscanf(strings.Join(f[:5], " "), "%x-%x "+f[1]+" %x %x:%x %d", &p.start, &p.end, &offset, &major, &minor, &ino); n != 6 {
		return p, false
	}
	for _, o := range e.objects {
		if o.ino == ino && o.dev == unix.Mkdev(major, minor) {
			p.o, p.page = o, int(offset/pageSize)
			p.end = min(p.end, p.start+uint64(max(0, o.region.pages-p.page))*pageSize)
			return p, p.start < p.end
		}
	}
	return p, false
}
