package pagesrv

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
)

// reading is the work space of one request, reused.
type reading struct {
	parts []Request // what is asked for
	whole struct {  // of all of them, one after the other
		kinds [MaxPages]Kind
		errno [MaxPages]syscall.Errno
		buf   []byte
	}

	req   Request // the range that is looked at, see look
	kinds []Kind
	errno []syscall.Errno
	buf   []byte // page i of the range at i*PageSize

	vec    [MaxPages + 1]pagemap.Region
	remote [MaxPages]unix.RemoteIovec
	local  [MaxPages]unix.Iovec
	runs   []Run
	head   []byte
	frame  [][]byte
	flat   []byte // the data of all parts, to be packed
	packed []byte
}

var readings = sync.Pool{New: func() any {
	r := &reading{}
	r.whole.buf = make([]byte, MaxPages*PageSize)
	return r
}}

// look has what follows be about req, whose pages come behind as many of other ranges.
func (r *reading) look(req Request, behind uint32) {
	end := behind + req.Pages
	r.req = req
	r.kinds, r.errno, r.buf = r.whole.kinds[behind:end], r.whole.errno[behind:end], r.whole.buf[behind*PageSize:end*PageSize]
	clear(r.kinds)
	clear(r.errno)
}

// lookAtAll has result be about all ranges, which have been read.
func (r *reading) lookAtAll(pages uint32) {
	r.req.Pages = pages
	r.kinds, r.errno, r.buf = r.whole.kinds[:pages], r.whole.errno[:pages], r.whole.buf[:pages*PageSize]
}

var zeroPage [PageSize]byte

// page kinds before they are final
const kindPresent Kind = 0xff

// read fills r from the task: kinds, and bytes where the kind is data. before is called ahead of each chunk.
func (t *task) read(r *reading, legacy bool, chunk int, before func()) error {
	n := int(r.req.Pages)
	return t.use(func(f *taskFiles) error {
		if err := f.scan(r, legacy); err != nil {
			return fmt.Errorf("scan task %d at %#x: %w", t.id, r.req.Addr, err)
		}
		for i := 0; i < n; i += chunk {
			before()
			if err := t.fill(f, r, i, min(i+chunk, n)); err != nil {
				return fmt.Errorf("read task %d at %#x: %w", t.id, r.req.Addr, err)
			}
		}
		if f.absent(r) {
			if err := t.scanHeld(f); err != nil {
				return err
			}
		}
		return t.exists()
	})
}

// absent turns what the scan did not find into zeros where that is what absent means, and tells whether there was any.
func (f *taskFiles) absent(r *reading) bool {
	any := false
	for i := 0; i < int(r.req.Pages); {
		j := i + 1
		if r.kinds[i] != 0 {
			i = j
			continue
		}
		for j < int(r.req.Pages) && r.kinds[j] == 0 {
			j++
		}
		any = true
		all := f.zeroWhenAbsent(r.addr(i), r.addr(j))
		for ; i < j; i++ {
			if all || f.zeroWhenAbsent(r.addr(i), r.addr(i+1)) {
				r.kinds[i] = KindZero
			} else {
				r.kinds[i], r.errno[i] = KindError, unix.EFAULT
			}
		}
	}
	return any
}

func (r *reading) addr(page int) uint64      { return r.req.Addr + uint64(page)*PageSize }
func (r *reading) bytes(from, to int) []byte { return r.buf[from*PageSize : to*PageSize] }

// scan sets the kinds: present, zero (the kernel's zero page is mapped), guard, or 0 for absent.
func (f *taskFiles) scan(r *reading, legacy bool) error {
	n := int(r.req.Pages)
	clear(r.kinds[:n])
	if legacy {
		return f.scanPagemap(r)
	}
	q := pagemap.Query{
		Any:    pagemap.Present | pagemap.Swapped | guardCategory(),
		Return: pagemap.Present | pagemap.Swapped | pagemap.PfnZero | guardCategory(),
	}
	got, reached, err := pagemap.FD(f.pagemap.Fd()).Scan(r.addr(0), r.addr(n), q, r.vec[:])
	if err != nil {
		return err
	}
	if reached != r.addr(n) {
		return fmt.Errorf("scan ended at %#x: %w", reached, unix.EIO)
	}
	for _, v := range r.vec[:got] {
		k := kindPresent
		switch {
		case v.Categories&pagemap.Guard != 0:
			k = KindGuard
		case v.Categories&pagemap.PfnZero != 0:
			k = KindZero
		}
		for i := (v.Start - r.req.Addr) / PageSize; i < (v.End-r.req.Addr)/PageSize; i++ {
			r.kinds[i] = k
		}
	}
	return nil
}

// scanPagemap is scan on kernels without PAGEMAP_SCAN.
func (f *taskFiles) scanPagemap(r *reading) error {
	n := int(r.req.Pages)
	var entries [MaxPages]uint64
	b := unsafe.Slice((*byte)(unsafe.Pointer(&entries)), n*pagemap.EntrySize)
	got, err := pread(f.pagemap, b, int64(r.addr(0)/PageSize*pagemap.EntrySize))
	if err != nil {
		return err
	}
	if got != len(b) {
		return fmt.Errorf("pagemap has %d entries of %d: %w: %w", got/pagemap.EntrySize, n, ErrSourceLost, unix.ESRCH)
	}
	for i, e := range entries[:n] {
		switch {
		case e&pagemap.EntryGuard != 0:
			r.kinds[i] = KindGuard
		case e&(pagemap.EntryPresent|pagemap.EntrySwapped) != 0:
			r.kinds[i] = kindPresent
		}
	}
	return nil
}

// fill reads the present pages of [from, to).
func (t *task) fill(f *taskFiles, r *reading, from, to int) error {
	for {
		got, want, err := t.readv(r, from, to)
		if err != nil {
			return err
		}
		// The first got present pages are there. Skip past them.
		for ; from < to && (got > 0 || r.kinds[from] != kindPresent); from++ {
			if r.kinds[from] == kindPresent {
				r.settle(from)
				got, want = got-1, want-1
			}
		}
		if want == 0 || from == to {
			return nil
		}
		// The kernel would not read this page for us: no permission, or broken. Its whole run the other way.
		end := from + 1
		for end < to && r.kinds[end] == kindPresent {
			end++
		}
		n, err := pread(f.mem, r.bytes(from, end), int64(r.addr(from)))
		if err == nil && n == 0 {
			return fmt.Errorf("address space is gone: %w: %w", ErrSourceLost, unix.ESRCH)
		}
		for ; n >= PageSize; n -= PageSize {
			r.settle(from)
			from++
		}
		if err != nil {
			errno, ok := errors.AsType[syscall.Errno](err)
			if !ok || errno == unix.ESRCH {
				return fmt.Errorf("%w: %w", ErrSourceLost, err)
			}
			r.kinds[from], r.errno[from] = f.diagnose(r.addr(from), errno)
			from++
		}
	}
}

// readv reads the present pages of [from, to) in one call; it tells how many it got, of how many.
func (t *task) readv(r *reading, from, to int) (got, want int, err error) {
	n := 0
	for i := from; i < to; {
		if r.kinds[i] != kindPresent {
			i++
			continue
		}
		j := i + 1
		for j < to && r.kinds[j] == kindPresent {
			j++
		}
		b := r.bytes(i, j)
		r.remote[n] = unix.RemoteIovec{Base: uintptr(r.addr(i)), Len: len(b)}
		r.local[n] = unix.Iovec{Base: &b[0], Len: uint64(len(b))}
		n++
		want += j - i
		i = j
	}
	if n == 0 {
		return 0, 0, nil
	}
	for {
		bytes, err := unix.ProcessVMReadv(t.pid, r.local[:n], r.remote[:n], 0)
		switch err {
		case nil:
			return bytes / PageSize, want, nil
		case unix.EFAULT:
			return 0, want, nil
		case unix.EINTR:
			continue
		case unix.ESRCH:
			return 0, 0, fmt.Errorf("%w: %w", ErrSourceLost, err)
		}
		return 0, 0, err
	}
}

// settle makes a page that has been read data, or zero if that is all that it holds.
func (r *reading) settle(page int) {
	r.kinds[page] = KindData
	if b := r.bytes(page, page+1); b[0] == 0 && bytes.Equal(b, zeroPage[:]) {
		r.kinds[page] = KindZero
	}
}

// result is what was read as runs, and the parts of a frame's payload. Valid until r is used again.
func (r *reading) result() [][]byte {
	n := int(r.req.Pages)
	r.runs, r.frame = r.runs[:0], append(r.frame[:0], nil)
	for i := 0; i < n; {
		j := i + 1
		for j < n && r.kinds[j] == r.kinds[i] && (r.kinds[i] != KindError || r.errno[j] == r.errno[i]) {
			j++
		}
		run := Run{Kind: r.kinds[i], Pages: uint32(j - i)}
		switch run.Kind {
		case KindError:
			run.Errno = r.errno[i]
		case KindData:
			r.frame = append(r.frame, r.bytes(i, j))
		}
		r.runs = append(r.runs, run)
		i = j
	}
	r.head = appendRuns(r.head[:0], r.runs)
	r.frame[0] = r.head
	return r.frame
}
