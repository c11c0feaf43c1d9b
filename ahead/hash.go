package ahead

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/minio/highwayhash"
	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
)

// Where writes are not tracked pages are compared: by a keyed hash of the bytes that were sent and one of those that are there later. Nothing is made in the process, which is not
// even stopped for it. See the package's doc.

// sum is the hash of a page.
type sum [highwayhash.Size128]byte

// newKey is one migration's. It and all sums stay in this process.
func newKey() []byte {
	k := make([]byte, highwayhash.Size)
	_, _ = rand.Read(k) // never fails
	return k
}

// sums are those of the pages of an address space that were sent last. Which have one, the set sent says.
type sums struct {
	key    []byte
	chunks map[uint64]*[chunkSize / pageSize]sum
	probe  map[uint64]sum // of some pages, before any was sent
}

func newSums(key []byte) *sums {
	return &sums{key: key, chunks: map[uint64]*[chunkSize / pageSize]sum{}}
}

func (s *sums) of(page []byte) sum { return highwayhash.Sum128(page, s.key) }

func (s *sums) set(addr uint64, v sum) {
	c := s.chunks[addr/chunkSize]
	if c == nil {
		c = new([chunkSize / pageSize]sum)
		s.chunks[addr/chunkSize] = c
	}
	c[addr%chunkSize/pageSize] = v
}

// is says whether the sum that was set last is v.
func (s *sums) is(addr uint64, v sum) bool {
	c := s.chunks[addr/chunkSize]
	return c != nil && c[addr%chunkSize/pageSize] == v
}

// changed leaves of n, whose bytes are data, what is not as it was sent last, moves its bytes together, and calls f for each run of it.
func (s *space) changed(n span, data []byte, f func(span)) (left int) {
	var run span
	for at := n.start; at < n.end; at += pageSize {
		page := data[at-n.start:][:pageSize]
		v := s.sums.of(page)
		if s.sent.has(at) && s.sums.is(at, v) {
			continue
		}
		s.sums.set(at, v)
		left += copy(data[left:], page)
		if run.end != at {
			if run.end > run.start {
				f(run)
			}
			run.start = at
		}
		run.end = at + pageSize
	}
	if run.end > run.start {
		f(run)
	}
	return left
}

// mostEntries bounds what a kernel without PAGEMAP_SCAN is asked of: a mapping that is larger follows after the resume.
const mostEntries = 64 << 30

// present finds the pages in l that have contents.
func (s *space) present(f *os.File, l spans) (todo spans, err error) {
	if pagemap.Probe().Scan && !s.entries {
		err = s.scan(f.Fd(), l, lookStep, contents(pagemap.Query{Any: there}), func(v pagemap.Region) {
			if v.Categories&pagemap.PfnZero == 0 {
				todo = todo.add(span{v.Start, v.End})
			}
		})
		return todo, err
	}
	b := make([]byte, 64<<10)
	for _, r := range l {
		if r.end-r.start > mostEntries {
			continue
		}
		for at := r.start; at < r.end; {
			n := min(uint64(len(b)), (r.end-at)/pageSize*pagemap.EntrySize)
			got, err := f.ReadAt(b[:n], int64(at/pageSize*pagemap.EntrySize))
			if err != nil && !errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("look for pages of process %d at %#x: %w", s.pid, at, err)
			}
			if got < pagemap.EntrySize {
				break
			}
			for i := 0; i+pagemap.EntrySize <= got; i += pagemap.EntrySize {
				e := binary.NativeEndian.Uint64(b[i:])
				if e&(pagemap.EntryPresent|pagemap.EntrySwapped) != 0 && e&pagemap.EntryGuard == 0 {
					todo = todo.add(span{at, at + pageSize})
				}
				at += pageSize
			}
		}
	}
	return todo, nil
}

// oneIn is how many pages there are for each that is looked at to guess how many have changed.
const oneIn = 32

func sampled(addr uint64) bool { return addr/pageSize*0x9e3779b97f4a7c15>>59 == 0 }

// begin takes sums of some pages.
func (s *sums) begin(mem *os.File, l spans) {
	s.probe = map[uint64]sum{}
	page := make([]byte, pageSize)
	for _, r := range l {
		for at := r.start; at < r.end; at += pageSize {
			if sampled(at) {
				if n, _ := unix.Pread(int(mem.Fd()), page, int64(at)); n == pageSize {
					s.probe[at] = s.of(page)
				}
			}
		}
	}
}

// changedSince guesses how many pages are not as they were sent, or probed.
func (s *space) changedSince() (n uint64) {
	page := make([]byte, pageSize)
	differs := func(at uint64, is func(sum) bool) {
		if got, _ := unix.Pread(int(s.mem.Fd()), page, int64(at)); got != pageSize || !is(s.sums.of(page)) {
			n += oneIn
		}
	}
	if s.sums.probe != nil {
		for at, v := range s.sums.probe {
			differs(at, func(now sum) bool { return now == v })
		}
		return n
	}
	_ = s.sent.words(func(addr, mask uint64) error {
		for ; mask != 0; mask, addr = mask>>1, addr+pageSize {
			if mask&1 != 0 && sampled(addr) {
				differs(addr, func(now sum) bool { return s.sums.is(addr, now) })
			}
		}
		return nil
	})
	return n
}

// same is good for compared pages: of those that are there now and were sent, which are as they were sent.
func (s *space) same() (*pages, error) {
	// Opened anew: the address space that will be restored.
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", s.pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	pm, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", s.pid))
	if err != nil {
		return nil, err
	}
	defer pm.Close()
	anon, err := anonymous(s.pid)
	if err != nil {
		return nil, err
	}
	all, err := s.present(pm, anon)
	if err != nil {
		return nil, err
	}
	out := newPages()
	var mu sync.Mutex // guards out
	var wg sync.WaitGroup
	work := make(chan span)
	for range min(runtime.GOMAXPROCS(0), 4) {
		wg.Go(func() {
			data := make([]byte, comparePiece)
			for t := range work {
				var same spans
				for at := t.start; at < t.end; {
					n := min(t.end-at, comparePiece)
					got, _ := unix.Pread(int(mem.Fd()), data[:n], int64(at))
					whole := uint64(max(got, 0)) &^ (pageSize - 1)
					for i := uint64(0); i < whole; i += pageSize {
						if s.sent.has(at+i) && s.sums.is(at+i, s.sums.of(data[i:][:pageSize])) {
							same = same.add(span{at + i, at + i + pageSize})
						}
					}
					if at += whole; whole == 0 { // it can't be read: not good
						at += pageSize
					}
				}
				mu.Lock()
				for _, r := range same {
					out.set(r)
				}
				mu.Unlock()
			}
		})
	}
	for _, r := range all {
		for at := r.start; at < r.end; at += compareShare {
			work <- span{at, min(r.end, at+compareShare)}
		}
	}
	close(work)
	wg.Wait()
	return out, nil
}

const (
	comparePiece = 1 << 20  // is read at a time
	compareShare = 32 << 20 // is one goroutine's
)

// joined is spans of which neighbours are one.
func (l spans) joined() (out spans) {
	for _, s := range l {
		out = out.add(s)
	}
	return out
}
