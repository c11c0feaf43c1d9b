package lazyfs

import "time"

// A write that finds no room shall fail at once, where programs look for it, not at fsync or close. So the source is asked how much room there is where a file lies, and where little is left nothing
// is streamed. Limits that statfs does not show (quotas of users) are told late, once: a file of which a streamed write has failed is not streamed any more.
type room struct {
	never  bool
	known  bool
	asking bool
	asked  time.Time
	free   uint64
	spent  uint64 // stream.spent when it was asked
}

const (
	roomLeft  = 64 << 20 // is what streamed writes leave
	roomStays = 2 * time.Second
	maxRooms  = 1 << 12
)

// hasRoom says whether n bytes more will find room, as far as is known.
func (s *stream) hasRoom(node uint64, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.roomLocked(node)
	return r.known && !r.never && r.free >= s.spent-r.spent+uint64(n)+s.spare // spent is for all files: they may lie on the same disk
}

// roomLocked asks again, behind the caller's back, when what is known is old.
func (s *stream) roomLocked(node uint64) *room {
	r := s.rooms[node]
	if r == nil {
		if len(s.rooms) >= maxRooms {
			clear(s.rooms)
		}
		r = &room{}
		s.rooms[node] = r
	}
	if r.asking || time.Since(r.asked) < s.stays || s.ctx.Err() != nil {
		return r
	}
	r.asking, r.asked = true, time.Now()
	spent := s.spent
	for _, x := range s.log { // not yet written there
		spent -= uint64(len(x.b))
	}
	s.wg.Go(func() {
		st, err := s.to.Statfs(s.ctx, node)
		s.mu.Lock()
		defer s.mu.Unlock()
		r.asking = false
		if err == nil {
			unit := uint64(st.Frsize)
			if unit == 0 {
				unit = uint64(st.Bsize)
			}
			r.known, r.free, r.spent = true, st.Bavail*unit, spent
		}
	})
	return r
}

// learnRoom is when a file is opened for writing.
func (s *stream) learnRoom(node uint64) {
	if !s.on.Load() || !s.f.alone() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roomLocked(node)
}

// noRoom is when a write has failed: the next ones hear what is wrong themselves.
func (s *stream) noRoom(node uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roomLocked(node).never = true
}
