package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// work is what one visit of a file has to do: taken from the object first, so that what the tree changes meanwhile is marked anew.
type work struct {
	o           *object
	data, check ranges
	look, bare  bool
	own         bool
	attr        wire.FileAttr // of the source, fetched after the marks were taken
	h           uint64
	fd          int
}

func (s *Store) take(o *object) *work {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &work{o: o, data: o.data, check: o.check, look: o.look, bare: o.bare, own: o.own}
	o.data, o.check, o.look, o.own = nil, nil, false, false
	delete(s.dirty, o)
	return w
}

// giveBack marks what was not done.
func (s *Store) giveBack(w *work) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := w.o
	if o.gone {
		return
	}
	s.touched[o]++
	for _, x := range w.data {
		o.data.add(x.off, x.end)
	}
	for _, x := range w.check {
		o.check.add(x.off, x.end)
	}
	o.look, o.own = o.look || w.look, o.own || w.own
	if o.dirtyLocked() {
		s.dirty[o] = struct{}{}
	}
}

// visit brings one copy up to date: contents, then a look whether they are right, then attributes.
func (s *Store) visit(ctx context.Context, o *object) error {
	w := s.take(o)
	err := s.bringUp(ctx, w)
	s.giveBack(w)
	if err != nil && !isGone(err) { // that the source has it no longer will be seen by whoever has its name
		err = fmt.Errorf("copy %s: %w", s.path(o), err)
	} else {
		err = nil
	}
	if err != nil && (wire.ErrnoOf(err) == 0 || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS) || ctx.Err() != nil) {
		return err // not because of this file
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.failed = ""; err != nil {
		o.failed = err.Error()
	}
	return nil
}

func (s *Store) bringUp(ctx context.Context, w *work) (err error) {
	o := w.o
	if w.attr, err = s.o.Remote.GetAttr(ctx, o.node); err != nil {
		return err
	}
	if o.isDir() && (o.how == howMove || o.how == howExpand) {
		s.mu.Lock()
		if o.listed != w.attr.Mtime {
			o.relist = true
			s.dirty[o] = struct{}{}
		}
		s.mu.Unlock()
	}
	if w.fd, err = s.open(o, unix.O_PATH); err != nil {
		return err
	}
	defer func() { _ = unix.Close(w.fd) }()
	if o.declared { // a place to mount at
		w.data, w.check = nil, nil
	} else if o.isReg() && len(w.data)+len(w.check) > 0 || o.size != int64(w.attr.Size) && o.isReg() {
		if err := s.contents(ctx, w); err != nil {
			return err
		}
	}
	if err := s.attributes(ctx, w); err != nil {
		return err
	}
	s.stamp(w)
	return nil
}

// contents copies and verifies.
func (s *Store) contents(ctx context.Context, w *work) (err error) {
	o := w.o
	if w.h, err = s.o.Remote.Open(ctx, nobody, o.node, unix.O_RDONLY|unix.O_NOATIME); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer s.o.Remote.Release(o.node, w.h)
	path := fmt.Sprintf("/proc/self/fd/%d", w.fd)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return fmt.Errorf("open copy: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	s.mu.Lock()
	o.right = false
	s.mu.Unlock()
	w.look = true // writing changes times, and takes capabilities away
	size := int64(w.attr.Size)
	if o.size != size {
		if err := unix.Ftruncate(fd, size); err != nil {
			return fmt.Errorf("set size of copy: %w", err)
		}
		o.size = size
	}
	for len(w.data) > 0 {
		x := w.data[0]
		if x.end = min(x.end, size); x.off < x.end {
			if err := s.fetch(ctx, w, fd, x); err != nil {
				return err
			}
		}
		w.check.add(x.off&^(wire.FileBlock-1), x.end)
		w.data = w.data[1:]
	}
	return s.verify(ctx, w, fd)
}

// fetch copies a range: data as data, holes as holes.
func (s *Store) fetch(ctx context.Context, w *work, fd int, x span) error {
	if w.attr.Blocks*512 >= w.attr.Size && x.end-x.off <= 64*chunk { // no holes, and it is not worth a round trip to ask
		return s.fetchData(ctx, w, fd, []wire.FileExtent{{Start: x.off, End: x.end}})
	}
	for off := x.off; off < x.end; {
		list, upTo, err := s.o.Remote.Extents(ctx, w.o.node, w.h, off, x.end)
		if err != nil {
			return fmt.Errorf("list data: %w", err)
		}
		if upTo <= off || upTo > x.end {
			return fmt.Errorf("list of data from %d to %d ends at %d: %w", off, x.end, upTo, unix.EIO)
		}
		for _, e := range list {
			if e.Start < off || e.End <= e.Start || e.End > upTo {
				return fmt.Errorf("list of data between %d and %d has %d to %d: %w", off, upTo, e.Start, e.End, unix.EIO)
			}
			if err := punch(fd, off, e.Start); err != nil {
				return err
			}
			off = e.End
		}
		if err := punch(fd, off, upTo); err != nil {
			return err
		}
		if err := s.fetchData(ctx, w, fd, list); err != nil {
			return err
		}
		off = upTo
	}
	return nil
}

func punch(fd int, off, end int64) error {
	if off >= end {
		return nil
	}
	err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, end-off)
	if err != nil {
		return fmt.Errorf("make hole in copy: %w", err)
	}
	return nil
}

var chunks = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

// fetchData reads extents and writes them, several pieces at a time.
func (s *Store) fetchData(ctx context.Context, w *work, fd int, list []wire.FileExtent) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	ahead := make(chan struct{}, maxWindow)
	piece := func(off int64, n int) {
		defer wg.Done()
		defer func() { <-ahead }()
		p := chunks.Get().(*[]byte)
		b := (*p)[:n]
		got := 0
		err := s.pace.do(ctx, func() (err error) {
			read := s.o.Remote.ReadBulk
			if s.final.Load() { // the tree waits
				read = s.o.Remote.Read
			}
			got, err = read(ctx, w.o.node, w.h, uint64(off), b)
			return err
		})
		if err == nil || ctx.Err() == nil { // else the buffer may still be filled
			defer chunks.Put(p)
		}
		if err == nil {
			err = writeAll(fd, b[:got], off)
			s.copied.Add(int64(got))
		}
		if err != nil {
			cancel(err)
		}
	}
	for _, e := range list {
		for off := e.Start; off < e.End && ctx.Err() == nil; off += chunk {
			ahead <- struct{}{}
			wg.Add(1)
			go piece(off, int(min(chunk, e.End-off)))
		}
	}
	wg.Wait()
	return context.Cause(ctx)
}

func writeAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write copy: %w", err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// verify compares digests of the ranges that were copied. What differs is copied again: the tree wrote there and the mark is to come, or
// somebody else writes, which gives the file another time than it was stamped with.
func (s *Store) verify(ctx context.Context, w *work, fd int) error {
	size := int64(w.attr.Size)
	var again ranges
	settled := true
	for _, x := range w.check {
		end := min((x.end+wire.FileBlock-1)&^(wire.FileBlock-1), size)
		for off := x.off; off < end; off += wire.MaxFileSum {
			n := min(wire.MaxFileSum, end-off)
			theirs, a, still, err := s.o.Remote.Sum(ctx, w.o.node, w.h, off, n)
			if err != nil {
				return fmt.Errorf("verify: %w", err)
			}
			s.hashing <- struct{}{}
			ours, err := remotefs.Digest(fd, off, n)
			<-s.hashing
			if err != nil {
				return fmt.Errorf("verify copy: %w", err)
			}
			if ours != theirs {
				again.add(off, off+n)
			}
			if a.Size != w.attr.Size || a.Mtime != w.attr.Mtime || a.Ctime != w.attr.Ctime {
				settled = false
			}
			settled = settled && still
		}
	}
	if len(again) > 0 {
		w.data, w.check = again, nil
		return nil
	}
	if settled || s.final.Load() {
		w.check = nil
	}
	return nil
}
