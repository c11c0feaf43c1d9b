package pagesrv

import (
	"bytes"

	"github.com/lazymig/lazymig/wire"
)

// maxAhead is how many prefetching requests of one connection wait at most. What comes beyond that is answered in turn.
const maxAhead = 64

// message is a request that was read.
type message struct {
	h wire.Header
	p []byte
}

// prefetches says that nobody waits for what h asks for.
func prefetches(h wire.Header) bool { return h.Type == wire.MsgPages && h.Flags&wire.FlagPrefetch != 0 }

// startAhead starts the goroutine that answers what was put off: one after the other, each piece behind all faults that have come, in a thread
// of ordinary priority. It ends when sv.ahead is closed.
func (sv *serving) startAhead() (stopped chan struct{}) {
	sv.ahead, stopped = make(chan message, maxAhead), make(chan struct{})
	go func() {
		defer close(stopped)
		for m := range sv.ahead {
			if err := sv.answer(m.h, m.p); err != nil {
				_ = sv.c.Close() // who reads holds the lock
				sv.mu.Lock()
				sv.endLocked(err)
				sv.mu.Unlock()
			}
		}
	}()
	return stopped
}

// putOff leaves a request of the urgent lane that nobody waits for to that goroutine: the reader goes on to those that somebody waits for.
func (sv *serving) putOff(h wire.Header, p []byte) bool {
	if sv.lane != wire.LaneUrgent || !prefetches(h) {
		return false
	}
	select {
	case sv.ahead <- message{h, bytes.Clone(p)}:
		return true
	default:
		return false
	}
}
