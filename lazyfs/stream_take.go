package lazyfs

import (
	"time"

	"github.com/lazymig/lazymig/wire"
)

// What the kernel has to do with a streamed write: it is taken, and has been told.

// take takes a write; false: it can't be streamed, and is to be sent as any other. b is the caller's.
func (s *stream) take(who wire.FileCaller, node, h, off uint64, flags uint32, b []byte) bool {
	if !s.on.Load() || !s.hasRoom(node, len(b)) {
		return false
	}
	over := s.beginChange(node)
	r := &streamed{over: over, keptWrite: keptWrite{
		number: who.Number, node: node, handle: h, off: off, flags: flags, uid: who.UID, gid: who.GID, b: append([]byte(nil), b...),
	}}
	s.takeMu.Lock()
	defer s.takeMu.Unlock()
	s.mu.Lock()
	ok := s.w.room(len(b)) && s.why == nil && !s.calmLocked()
	s.mu.Unlock()
	if !ok {
		over()
		return false
	}
	if err := s.w.add(&r.keptWrite); err != nil { // of the window nobody else changes the end
		over()
		s.f.log.Warn("write is not streamed", "err", err)
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterLocked(r)
	return true
}

// calmLocked says that nothing is to be streamed now.
func (s *stream) calmLocked() bool { return s.calmers > 0 || time.Now().Before(s.calm) }

// beginChange makes void what is known of a file.
func (s *stream) beginChange(node uint64) (over func()) {
	s.f.clock.begin()
	done := s.changes.contents(node)
	return func() { done(); s.f.clock.end() }
}

func (s *stream) enterLocked(r *streamed) {
	r.sent, r.answered = make(chan struct{}), make(chan struct{})
	s.log = append(s.log, r)
	if len(s.unsent[r.node]) == 0 {
		s.turns = append(s.turns, r.node)
	}
	s.unsent[r.node] = append(s.unsent[r.node], r)
	s.taken++
	s.spent += uint64(len(r.b))
	s.numbers[r.number] = r
	s.nodes[r.node] = append(s.nodes[r.node], r)
	s.moveLocked()
}

// moveLocked wakes who waits for any change.
func (s *stream) moveLocked() {
	close(s.moved)
	s.moved = make(chan struct{})
}

// has says whether a write that comes again has been taken.
func (s *stream) has(number uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.numbers[number] != nil
}

// Settled: the answer to a write that was taken is wanted until it is given up.
func (s *stream) Settled(number uint64) {
	s.mu.Lock()
	r := s.numbers[number]
	if r != nil {
		r.told = true
		s.readyLocked(r)
	}
	s.mu.Unlock()
	if r == nil {
		s.to.Settled(number)
		return
	}
	s.prune()
}

// TakenOver: again has the numbers of what comes again from the kernel, to which those of the window are added.
func (s *stream) TakenOver(again map[uint64]bool) {
	s.mu.Lock()
	for number, r := range s.numbers {
		r.told = r.told || !again[number]
		s.readyLocked(r)
		again[number] = true
	}
	s.mu.Unlock()
	s.to.TakenOver(again)
	s.prune()
}
