package lazyfs

import (
	"syscall"

	"github.com/lazymig/lazymig/wire"
)

// The way of a streamed write from the window to the source and out of it.

// send sends what is in the window, in its order.
func (s *stream) send() {
	for {
		s.mu.Lock()
		var r *streamed
		if len(s.unsent) > 0 && s.inFlight < streamRequests && (s.bytes == 0 || s.bytes+len(s.unsent[0].b) <= streamBytes) && s.why == nil {
			r = s.unsent[0]
			s.inFlight++
			s.bytes += len(r.b)
		}
		moved := s.moved
		s.mu.Unlock()
		if r == nil {
			select {
			case <-moved:
				continue
			case <-s.ctx.Done():
				return
			}
		}
		over := make(chan struct{})
		s.wg.Go(func() {
			defer close(over)
			who := wire.FileCaller{UID: r.uid, GID: r.gid, Number: r.number}
			s.answer(r, s.to.Stream(s.ctx, who, r.node, r.handle, r.off, r.flags, r.b, func() { s.isSent(r) }))
		})
		select {
		case <-r.sent:
		case <-over:
		}
	}
}

func (s *stream) isSent(r *streamed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsent = s.unsent[1:]
	close(r.sent)
}

// answer takes the source's answer to a write.
func (s *stream) answer(r *streamed, err error) {
	if errno := told(err); err != nil && errno == 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.why == nil { // it stays in the window
			s.why = err
			close(s.lost)
			s.moveLocked()
		}
		return
	} else if err != nil {
		s.failed(r, err, errno)
	}
	r.over()
	s.f.watch.wrote(r.node, r.off, r.upTo())
	s.mu.Lock()
	s.clock++
	if len(s.changed) >= maxChanged {
		clear(s.changed)
		s.floor = s.clock
	}
	s.changed[r.node] = s.clock
	if s.nodes[r.node] = without(s.nodes[r.node], r); len(s.nodes[r.node]) == 0 {
		delete(s.nodes, r.node)
	}
	s.bytes -= len(r.b)
	r.isDone = true
	close(r.answered)
	s.moveLocked()
	s.mu.Unlock()
	s.prune()
}

// upTo is the end of what a write changes.
func (r *streamed) upTo() uint64 {
	if r.flags&wire.FileWriteAppend != 0 {
		return noEnd
	}
	return r.off + uint64(len(r.b))
}

func without(list []*streamed, r *streamed) []*streamed {
	if len(list) > 0 && list[0] == r { // nearly always: a file's writes are done in their order
		return list[1:]
	}
	for i, x := range list {
		if x == r {
			return append(list[:i:i], list[i+1:]...)
		}
	}
	return list
}

// failed notes that the tree has been told a write to be done which can't be.
func (s *stream) failed(r *streamed, err error, errno syscall.Errno) {
	s.f.log.Error("a write that the tree went on after could not be done at the source; it hears of it at fsync or close",
		"node", r.node, "offset", r.off, "bytes", len(r.b), "err", err)
	if err := s.errs.add(r.node, errno, r.seq); err != nil {
		s.f.log.Error("keep error of a write for a successor", "err", err)
	}
	s.noRoom(r.node)
	s.wg.Go(func() { s.f.dev.invalInode(r.node, 0) }) // the kernel has pages and a size that the source has not
}

// prune gives up the oldest records that nobody needs any more.
func (s *stream) prune() {
	s.pruneMu.Lock()
	defer s.pruneMu.Unlock()
	s.mu.Lock()
	n := 0
	for n < len(s.log) && s.log[n].isDone && s.log[n].told {
		n++
	}
	gone := s.log[:n:n]
	s.mu.Unlock()
	if n == 0 {
		return
	}
	last := gone[n-1]
	if err := s.w.release(last.end, last.seq+1); err != nil {
		s.f.log.Error("the window for writes stays full", "err", err)
		return
	}
	s.mu.Lock()
	s.w.head = last.end
	s.log = s.log[n:]
	s.inFlight -= n
	for _, r := range gone {
		delete(s.numbers, r.number)
	}
	s.moveLocked()
	s.mu.Unlock()
	for _, r := range gone {
		s.to.Settled(r.number)
	}
}
