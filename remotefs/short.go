package remotefs

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// This process may have no descriptor left for a while, or its host none. That would never have been the tree's trouble, so the tree isn't
// told: its operation waits. Nothing has been done then: the kernel looks for a descriptor before it opens or makes anything.

const (
	shortPause = 50 * time.Millisecond
	mostShort  = maxInFlight / 2 // requests that wait: what gives descriptors back must get through
)

// newFD calls fn, which opens something, until there is a descriptor for it.
func (s *Server) newFD(fn func() (int, error)) (int, error) {
	fd, err := retry(fn)
	if !isShort(err) {
		return fd, err
	}
	select {
	case s.short <- struct{}{}:
		defer func() { <-s.short }()
	default:
		return fd, err
	}
	s.log.Error("no descriptor is left; operations on files wait until there is one", "err", err)
	for isShort(err) {
		select {
		case <-s.seed.closed: // by Close
			return fd, err
		case <-time.After(shortPause):
		}
		fd, err = retry(fn)
	}
	return fd, err
}

func isShort(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }
