package pagesrv

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Object is shared memory of the tree: a file of the kernel's tmpfs, which lives as long as it is open here, whatever becomes of the tree. What it
// has no page for is zero, and reading that makes none.
type Object struct {
	ID   uint32 // one that IsObject
	File *os.File
}

// IsObject says whether a request's task is a shared object; its addresses are offsets then.
func IsObject(task uint32) bool { return task>>31 == 1 }

// sharedObjects are those of a server.
type sharedObjects struct {
	mu     sync.RWMutex // held for reading while files are in use
	files  map[uint32]*os.File
	closed bool
}

func (s *sharedObjects) take(list []Object) {
	s.files = make(map[uint32]*os.File, len(list))
	for _, o := range list {
		s.files[o.ID] = o.File
	}
}

func (s *sharedObjects) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for id, f := range s.files {
		_ = f.Close()
		delete(s.files, id)
	}
}

// use calls f with an open file.
func (s *sharedObjects) use(id uint32, f func(fd int) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	file := s.files[id]
	switch {
	case s.closed:
		return fmt.Errorf("read shared memory %#x: %w", id, ErrClosed)
	case file == nil:
		return fmt.Errorf("shared memory %#x is not served: %w", id, syscall.ENOENT)
	}
	return f(int(file.Fd()))
}

// read fills r from the object. before is called ahead of each chunk.
func (s *sharedObjects) read(r *reading, chunk int, before func()) error {
	n := int(r.req.Pages)
	return s.use(r.req.Task, func(fd int) error {
		for i := 0; i < n; i += chunk {
			before()
			for j := i; j < min(i+chunk, n); {
				got, err := r.readObject(fd, j, min(i+chunk, n))
				if err != nil {
					return fmt.Errorf("read shared memory %#x at %#x: %w", r.req.Task, r.addr(j), err)
				}
				j += got
			}
		}
		return nil
	})
}

// readObject reads pages of [from, to), and tells how many.
func (r *reading) readObject(fd, from, to int) (int, error) {
	b := r.bytes(from, to)
	for {
		n, err := unix.Pread(fd, b, int64(r.addr(from)))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EIO): // poisoned, or swapped out to a disk that fails
			if to-from > 1 {
				to = from + 1
				b = r.bytes(from, to)
				continue
			}
			r.kinds[from], r.errno[from] = KindError, unix.EIO
			return 1, nil
		case err != nil:
			return 0, err
		}
		if whole := n / PageSize; whole > 0 {
			for i := from; i < from+whole; i++ {
				r.settle(i)
			}
			return whole, nil
		}
		if n != 0 { // the size is a number of pages
			return 0, fmt.Errorf("%d bytes: %w", n, unix.EIO)
		}
		for i := from; i < to; i++ { // behind its end
			r.kinds[i] = KindZero
		}
		return to - from, nil
	}
}

// layout is what the file has pages for.
func (s *sharedObjects) layout(req LayoutRequest) (l Layout, err error) {
	err = s.use(req.Task, func(fd int) error {
		l = Layout{End: req.End}
		for at := req.Start; at < req.End; {
			data, err := unix.Seek(fd, int64(at), unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) || err == nil && uint64(data) >= req.End {
				return nil
			}
			var hole int64
			if err == nil {
				hole, err = unix.Seek(fd, data, unix.SEEK_HOLE)
			}
			if err != nil {
				return fmt.Errorf("look for pages of shared memory %#x at %#x: %w", req.Task, at, err)
			}
			at = min((uint64(hole)+PageSize-1)&^(PageSize-1), req.End)
			l.Fetch = append(l.Fetch, Range{uint64(data) &^ (PageSize - 1), at})
			if len(l.Fetch) == maxRanges {
				l.End = at
				return nil
			}
		}
		return nil
	})
	return l, err
}
