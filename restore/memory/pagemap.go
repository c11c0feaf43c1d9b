package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
)

// pages is an open /proc/PID/pagemap. It stays that of the mm that PID had when it was opened, whatever PID does.
type pages struct {
	fd  pagemap.FD
	buf [512 * pagemap.EntrySize]byte
	vec [64]pagemap.Region
}

func openPagemap(proc string, pid uint32) (*pages, error) {
	fd, err := unix.Open(filepath.Join(proc, strconv.FormatUint(uint64(pid), 10), "pagemap"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open pagemap of %d: %w", pid, err)
	}
	return &pages{fd: pagemap.FD(fd)}, nil
}

func (p *pages) close() {
	if p != nil {
		_ = unix.Close(int(p.fd))
	}
}

// each calls f with the entry of each page of [addr, addr+n pages) until f says false.
func (p *pages) each(addr uint64, n int, f func(i int, entry uint64) bool) error {
	for i := 0; i < n; {
		k := min(n-i, len(p.buf)/8)
		got, err := unix.Pread(int(p.fd), p.buf[:k*8], int64(addr/pageSize*8)+int64(i)*8)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read pagemap: %w", err)
		}
		if got < 8 {
			return fmt.Errorf("read pagemap: %w", unix.ESRCH) // the mm has no users any more
		}
		for j := range got / 8 {
			if !f(i+j, binary.NativeEndian.Uint64(p.buf[j*8:])) {
				return nil
			}
		}
		i += got / 8
	}
	return nil
}

// here says whether a page is present or swapped out.
func (p *pages) here(addr uint64) bool {
	ok := false
	_ = p.each(addr, 1, func(_ int, e uint64) bool { ok = e&(pagemap.EntryPresent|pagemap.EntrySwapped) != 0; return false })
	return ok
}

// absent calls f with the ranges of [start, end) where nothing is present or swapped out. A guard counts as swapped, or is
// in a range.
func (p *pages) absent(start, end uint64, f func(start, end uint64)) error {
	const there = pagemap.Present | pagemap.Swapped
	q := pagemap.Query{All: there, Not: there, Return: pagemap.Present}
	for start < end {
		n, reached, err := p.fd.Scan(start, end, q, p.vec[:])
		if errors.Is(err, unix.ENOTTY) { // before 6.7: page by page
			return p.each(start, int((end-start)/pageSize), func(i int, entry uint64) bool {
				if entry&(pagemap.EntryPresent|pagemap.EntrySwapped) == 0 {
					f(start+uint64(i)*pageSize, start+uint64(i+1)*pageSize)
				}
				return true
			})
		}
		if err != nil {
			return fmt.Errorf("scan pagemap: %w", err)
		}
		for _, r := range p.vec[:n] {
			f(r.Start, r.End)
		}
		start = reached
	}
	return nil
}

// maxGuesses is how many fills may try to find the process of an mm.
const maxGuesses = 8

// suspects are the processes that may have m, with addr missing: its task's, or for a child's those that nobody has.
// Which has it shows when the page is filled: see convict. The FORK event tells no pid.
func (e *Engine) suspects(m *mm, addr uint64) map[uint32]*pages {
	if m.pages != nil || m.guesses >= maxGuesses {
		return nil
	}
	m.guesses++
	pids := []uint32{m.id}
	if m.id == 0 {
		pids = e.strangers()
	}
	s := map[uint32]*pages{}
	for _, pid := range pids {
		p, err := openPagemap(e.opt.Proc, pid)
		if err != nil {
			continue
		}
		if p.here(addr) {
			p.close()
			continue
		}
		s[pid] = p
	}
	return s
}

// convict takes the process where the page that was filled in m has appeared: nothing else can make a missing page of
// registered memory appear.
func (e *Engine) convict(m *mm, addr uint64, s map[uint32]*pages) {
	for pid, p := range s {
		if m.pages == nil && p.here(addr) {
			m.pages, m.id = p, pid
			continue
		}
		p.close()
	}
}

// strangers are the processes that no mm is known to belong to.
func (e *Engine) strangers() []uint32 {
	known := map[uint32]bool{uint32(os.Getpid()): true}
	for _, m := range e.mms {
		known[m.id] = true
	}
	dir, err := os.Open(e.opt.Proc)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var out []uint32
	for _, n := range names {
		if pid, err := strconv.ParseUint(n, 10, 32); err == nil && !known[uint32(pid)] {
			out = append(out, uint32(pid))
		}
	}
	return out
}

// skipGuards marks pages that the process has made guards as taken: MADV_GUARD_INSTALL threw their contents away without
// an event, and UFFDIO_COPY would put the source's bytes in the guard's place. A guard that is made between this look and
// the fill is lost, and so is one that was made and removed before the page came: the old bytes are there then. It returns how many pages from page on are
// free of guards, 0 if the first one was one.
func (e *Engine) skipGuards(v *view, addr uint64, page, n int) int {
	m := v.mm
	if m.pages == nil {
		return n
	}
	free, guards := n, 0
	err := m.pages.each(addr, n, func(i int, entry uint64) bool {
		switch guard := entry&pagemap.EntryGuard != 0; {
		case guard && i == guards:
			guards++ // one at the front: only those are dealt with now
		case guard:
			free = i
			return false
		case guards > 0:
			return false
		}
		return true
	})
	if err != nil || guards == 0 {
		return free
	}
	v.take(page, page+guards)
	e.stats.guarded += uint64(guards)
	e.served(m, addr, uint64(guards)*pageSize)
	m.fd.wake(addr, uint64(guards)*pageSize)
	return 0
}

// prove looks whether each page that was filled with the source's bytes, and not dropped by an event since, is there.
// It says false if the mappings changed meanwhile. What is not there was thrown away without an event, which only
// MADV_GUARD_INSTALL does: zeros are right then, so nothing is done about it but to say so.
func (e *Engine) prove(m *mm) bool {
	if len(m.views) == 0 {
		return true // all that it has is shared
	}
	if m.pages == nil {
		e.stats.unproven++
		return true
	}
	absent := 0
	for _, s := range m.lay.segs {
		if s.r == nil || s.r.object != nil {
			continue
		}
		data := m.views[s.r].data
		err := m.pages.absent(s.start, s.end, func(start, end uint64) {
			for i, last := s.page(start), s.page(end); ; {
				i = data.nextSet(i, last)
				if i == last {
					return
				}
				j := data.nextClear(i, last)
				_ = m.pages.each(s.start+uint64(i-s.off)*pageSize, j-i, func(_ int, entry uint64) bool {
					if entry&(pagemap.EntryPresent|pagemap.EntrySwapped|pagemap.EntryGuard) == 0 {
						absent++
					}
					return true
				})
				i = j
			}
		})
		if err != nil {
			e.log.Debug("memory cannot be proven", "task", m.id, "err", err)
			e.stats.unproven++
			return true
		}
	}
	if changing, err := m.fd.changing(); err != nil || changing {
		return false
	}
	e.stats.absent += uint64(absent)
	if absent > 0 {
		e.log.Warn("pages that were filled are not there; the process must have made guards of them", "task", m.id, "pages", absent)
	}
	return true
}
