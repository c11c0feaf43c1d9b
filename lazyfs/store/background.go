package store

import (
	"context"
	"errors"
	"time"
)

const (
	restTime = 200 * time.Millisecond // between two rounds: what is written all the time is not copied all the time
	syncTime = time.Second            // between two times that all is brought to the disk
	waitTime = 2 * time.Second        // after an error, or to look for changes by others
)

func (s *Store) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// background keeps the copies up to date until the store is closed.
func (s *Store) background() {
	var synced time.Time
	for s.ctx.Err() == nil {
		ctx, cancel := context.WithCancel(s.ctx)
		s.pass.Lock()
		if s.rests {
			s.pass.Unlock()
			cancel()
			select {
			case <-s.wake:
			case <-s.ctx.Done():
			}
			continue
		}
		s.mu.Lock()
		s.yield = cancel
		if s.settling > 0 { // it comes first
			cancel()
		}
		s.mu.Unlock()
		err := s.round(ctx)
		quiet := err == nil && !s.restless()
		if quiet {
			err = s.rest(ctx)
		}
		left := s.undecided()
		s.mu.Lock()
		s.left = left
		s.yield = nil
		s.ready = err == nil && s.nearlyLocked()
		s.note(err, ctx.Err() != nil)
		s.mu.Unlock()
		s.pass.Unlock()
		cancel()
		if err == nil && time.Since(synced) > syncTime {
			synced, err = time.Now(), s.syncAll()
		}
		wait, wake := s.between, s.wake
		if err != nil {
			wait, wake = waitTime, nil
		} else if quiet {
			wait = waitTime
		}
		select {
		case <-time.After(wait):
		case <-wake:
			select { // a little later there is more
			case <-time.After(s.between):
			case <-s.ctx.Done():
			}
		case <-s.ctx.Done():
		}
	}
}

const (
	nearFiles = 1000
	nearBytes = 64 << 20
)

// nearlyLocked says that little is left to be looked at and copied: where files are made all the time there is always something. With mu.
func (s *Store) nearlyLocked() bool {
	files, bytes := 0, int64(0)
	for o := range s.dirty {
		if o.in && o.dirtyLocked() && o.failed == "" {
			files++
			bytes += o.data.size(int64(o.attr.Size)) + o.check.size(int64(o.attr.Size))
		}
	}
	return len(s.goals) <= nearFiles && len(s.left) == 0 && len(s.touched) <= nearFiles && files <= nearFiles && bytes <= nearBytes
}

// note tells the status how a round went. With mu.
func (s *Store) note(err error, interrupted bool) {
	switch {
	case err == nil:
		s.blocked = ""
	case interrupted, errors.Is(err, context.Canceled):
	default:
		if s.blocked != err.Error() {
			s.o.Log.Warn("files are not copied now; it is tried again", "err", err)
		}
		s.blocked = err.Error()
	}
}
