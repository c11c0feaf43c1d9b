package lazyfs

import (
	"slices"
	"syscall"

	"github.com/lazymig/lazymig/wire"
)

// The way of a streamed write from the window to the source and out of it.

// send sends what is in the window: a file's writes in their order, files by turns.
func (s *stream) send() {
	for {
		s.mu.Lock()
		r := s.nextLocked()
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

// nextLocked is what is to be sent next. A file has at most as much under way as it leaves for others: one that the source hangs at leaves them half, a second one a quarter.
func (s *stream) nextLocked() *streamed {
	if s.why != nil {
		return nil
	}
	for i, node := range s.turns {
		r, has := s.unsent[node][0], s.flies[node]
		requests, bytes := streamRequests-s.flying.requests, streamBytes-s.flying.bytes
		if has.requests >= requests || s.flying.requests > 0 && has.bytes+len(r.b) > bytes {
			continue
		}
		s.turns = append(slices.Delete(s.turns, i, i+1), node)
		s.fliesLocked(r, 1, len(r.b))
		return r
	}
	return nil
}

// fliesLocked changes what is under way.
func (s *stream) fliesLocked(r *streamed, requests, bytes int) {
	s.flying = load{s.flying.requests + requests, s.flying.bytes + bytes}
	has := s.flies[r.node]
	if has = (load{has.requests + requests, has.bytes + bytes}); has == (load{}) {
		delete(s.flies, r.node)
		return
	}
	s.flies[r.node] = has
}

func (s *stream) isSent(r *streamed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsent[r.node] = s.unsent[r.node][1:]; len(s.unsent[r.node]) == 0 {
		delete(s.unsent, r.node)
		s.turns = slices.DeleteFunc(s.turns, func(node uint64) bool { return node == r.node })
	}
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
	s.fliesLocked(r, 0, -len(r.b))
	r.isDone = true
	s.readyLocked(r)
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

// readyLocked notes a record that nobody needs any more.
func (s *stream) readyLocked(r *streamed) {
	if r.isDone && r.told && !r.given {
		r.given = true
		s.ready = append(s.ready, r)
	}
}

// prune gives up the records that nobody needs any more. Those that are older than all others make room in the window, the others are marked there.
func (s *stream) prune() {
	s.pruneMu.Lock()
	defer s.pruneMu.Unlock()
	s.mu.Lock()
	ready := s.ready
	s.ready = nil
	n := 0
	for n < len(s.log) && s.log[n].given {
		n++
	}
	gone := s.log[:n:n]
	s.mu.Unlock()
	if n > 0 {
		last := gone[n-1]
		if err := s.w.release(last.end, last.seq+1); err != nil {
			s.f.log.Error("the window for writes stays full", "err", err)
			s.again(ready)
			return
		}
		s.mu.Lock()
		s.w.head = last.end
		s.log = s.log[n:]
		s.mu.Unlock()
	}
	for i, r := range ready {
		if n > 0 && r.seq <= gone[n-1].seq {
			continue
		}
		if err := s.w.mark(&r.keptWrite); err != nil {
			s.f.log.Error("the window for writes stays full", "err", err)
			s.again(ready[i:])
			ready = ready[:i]
			break
		}
	}
	if len(ready) == 0 {
		return
	}
	s.mu.Lock()
	for _, r := range ready {
		s.fliesLocked(r, -1, 0)
		delete(s.numbers, r.number)
	}
	s.moveLocked()
	s.mu.Unlock()
	for _, r := range ready {
		s.to.Settled(r.number)
	}
}

// again tries it with the next ones.
func (s *stream) again(list []*streamed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = append(list, s.ready...)
}
