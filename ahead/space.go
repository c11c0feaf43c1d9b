package ahead

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
)

// space is the address space of a process, tracked.
type space struct {
	id       uint32
	pid      int
	uffd     *os.File
	mem      *os.File // both stay with this address space when the process gets another
	pagemap  *os.File
	known    spans  // registered, as far as was seen
	pending  spans  // protected, and not read yet
	sent     *pages // copies that are good as far as was seen
	held     *pages // pages that the target has a copy of, good or not: they take no more room
	excluded bool   // it has files open with O_DIRECT
	sums     *sums  // pages are compared, nothing is tracked: there is no uffd, and known is not registered
	entries  bool   // for tests: a kernel without PAGEMAP_SCAN
	vec      []pagemap.Region
}

// Steps bound for how long a scan keeps the process from changing its mappings: some milliseconds.
const (
	protectStep = 64 << 20
	lookStep    = 512 << 20
)

// there are the categories of a page that has contents. Guards count as swapped; see contents.
const there = pagemap.Present | pagemap.Swapped

func open(borrow func(pid int) (*os.File, error), p Process, compared *sums) (_ *space, err error) {
	s := &space{id: p.ID, pid: p.PID, sent: newPages(), held: newPages(), sums: compared, vec: make([]pagemap.Region, 2048)}
	defer func() {
		if err != nil {
			s.close()
			err = fmt.Errorf("track writes of process %d: %w", p.PID, err)
		}
	}()
	if s.sums == nil {
		if s.uffd, err = borrow(p.PID); err != nil {
			return nil, err
		}
		if err := begin(int(s.uffd.Fd())); err != nil {
			return nil, fmt.Errorf("begin with userfaultfd: %w", err)
		}
	}
	// Opened later than the userfaultfd: if the process has called execve in between, nothing is registered where these look.
	if s.mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", p.PID)); err != nil {
		return nil, err
	}
	s.pagemap, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", p.PID))
	return s, err
}

func (s *space) close() {
	for _, f := range []*os.File{s.uffd, s.mem, s.pagemap} {
		if f != nil {
			f.Close()
		}
	}
}

// gone says that the address space has lost its last user.
func (s *space) gone() bool {
	var b [pagemap.EntrySize]byte
	n, err := unix.Pread(int(s.pagemap.Fd()), b[:], 0)
	return err != nil || n == 0
}

// scan calls f with what a query finds in l.
func (s *space) scan(fd uintptr, l spans, step uint64, q pagemap.Query, f func(pagemap.Region)) error {
	for _, r := range l {
		for at := r.start; at < r.end; {
			n, reached, err := pagemap.FD(fd).Scan(at, min(r.end, at+step), q, s.vec)
			if err != nil {
				return fmt.Errorf("scan process %d at %#x: %w", s.pid, at, err)
			}
			for _, v := range s.vec[:n] {
				f(v)
			}
			at = reached
		}
	}
	return nil
}

// look forgets what is not registered any more, and registers what is new: see the package's doc.
func (s *space) look() error {
	if s.sums != nil {
		anon, err := anonymous(s.pid)
		s.known = anon.joined()
		s.sent.keep(s.known)
		return err
	}
	var now spans
	q := pagemap.Query{All: pagemap.WPAllowed, Return: pagemap.WPAllowed}
	if err := s.scan(s.pagemap.Fd(), s.known, lookStep, q, func(v pagemap.Region) { now = now.add(span{v.Start, v.End}) }); err != nil {
		return err
	}
	s.known = s.known.both(now)
	s.sent.keep(s.known)
	anon, err := anonymous(s.pid)
	if err != nil {
		return err
	}
	var fresh spans
	for _, r := range anon.without(s.known) {
		err := register(int(s.uffd.Fd()), r)
		switch {
		case err == nil:
			fresh = fresh.add(r)
		case errors.Is(err, unix.ESRCH):
			return fmt.Errorf("register memory of process %d: %w", s.pid, err)
		}
		// Else it has been unmapped meanwhile, or something else is there: not tracked, so not sent.
	}
	s.known = s.known.with(fresh)
	return nil
}

// written finds what has been written since it was last asked, and protects it: copies of it are not good any more.
func (s *space) written() (spans, error) {
	if s.sums != nil { // which of them have been, comes out when they are read
		return s.present(s.pagemap, s.known)
	}
	var todo spans
	err := s.scan(s.pagemap.Fd(), s.known, protectStep, contents(pagemap.Query{All: pagemap.Written, Any: there, Protect: true}), func(v pagemap.Region) {
		r := span{v.Start, v.End}
		s.sent.clear(r)
		if v.Categories&pagemap.PfnZero == 0 { // the kernel's zero page is no copy worth
			todo = todo.add(r)
		}
	})
	return todo, err
}

// dirty is how many pages have been written since written was called, and in how many runs they lie.
func (s *space) dirty(f func(id uint32, addr, pages uint64)) (n uint64, runs int, err error) {
	if s.sums != nil {
		n = s.changedSince()
		return n, int(n), nil
	}
	end := uint64(0)
	err = s.scan(s.pagemap.Fd(), s.known, lookStep, contents(pagemap.Query{All: pagemap.Written, Any: there}), func(v pagemap.Region) {
		if v.Categories&pagemap.PfnZero == 0 {
			n += (v.End - v.Start) / pageSize
			if f != nil {
				f(s.id, v.Start, (v.End-v.Start)/pageSize)
			}
			if v.Start != end {
				runs++
			}
			end = v.End
		}
	})
	return n, runs, err
}

// good is what of sent is good now that the process is frozen, and stays so.
func (s *space) good() (*pages, error) {
	if s.sums != nil {
		return s.same()
	}
	out := newPages()
	// Opened anew: the address space that will be restored.
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", s.pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	q := contents(pagemap.Query{All: pagemap.WPAllowed | pagemap.Written, Not: pagemap.Written, Any: there})
	err = s.scan(f.Fd(), s.known, lookStep, q, func(v pagemap.Region) {
		if v.Categories&pagemap.PfnZero == 0 {
			out.set(span{v.Start, v.End})
		}
	})
	if err != nil {
		return nil, err
	}
	out.and(s.sent)
	return out, nil
}

// contents makes a query leave guards out, and tell the zero page.
func contents(q pagemap.Query) pagemap.Query {
	q.Return |= pagemap.PfnZero
	if pagemap.Probe().Guard {
		q.All |= pagemap.Guard
		q.Not |= pagemap.Guard
	}
	return q
}

// anonymous lists private anonymous mappings: those that are restored lazily are among them.
func anonymous(pid int) (out spans, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// 7f0000000000-7f0000001000 rw-p 00000000 00:00 0      [heap]
		l := strings.Fields(lines.Text())
		if len(l) < 5 || l[4] != "0" || len(l[1]) != 4 || l[1][3] != 'p' {
			continue
		}
		if len(l) > 5 && l[5] != "[heap]" && !strings.HasPrefix(l[5], "[anon:") {
			continue
		}
		from, to, _ := strings.Cut(l[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("read maps of %d: %w", pid, err)
		}
		out = append(out, span{start, end}) // each by itself: one that can't be registered keeps no other from it
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read maps of %d: %w", pid, err)
	}
	return slices.Clip(out), nil
}
