package remotefs

import (
	"sync"

	"github.com/lazymig/lazymig/wire"
)

// chain puts requests behind the streamed writes to the same node that were read before them, in the order of the lane. So a file's writes are done one after the other, and a
// client sends what must see them without having waited for any. TestStreamOrder shows it.
//
// A connection that is replaced changes nothing: what was read from it is done, what has no answer comes again in its order. A write that comes again while it is
// still being done holds up what follows as it did at first.
type chain struct {
	mu    sync.Mutex
	tails map[uint64]*keptAnswer // by node: the streamed write that was read last
	aside int                    // writes that wait without a place
}

// waitsAside says whether a request gives its place among those at work back because it waits for its turn: a file that hangs would have all places else, and nothing be done any more.
// What has waited is done without a place, for all may be held by who waits for it; no more than one of a file is at work.
func (s *Server) waitsAside(j *job) bool {
	wait := j.after
	if j.again {
		wait = j.kept.done
	}
	if j.h.Type != wire.MsgFileStream || wait == nil {
		return false
	}
	select {
	case <-wait:
		return false
	default:
	}
	c := &s.chain
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aside >= maxUnanswered {
		return false
	}
	c.aside++
	return true
}

// awaitTurn is the wait of who waits aside.
func (s *Server) awaitTurn(j *job) {
	if j.again {
		select {
		case <-j.kept.done:
		case <-j.link.gone:
		}
	} else {
		<-j.after
	}
	s.chain.mu.Lock()
	s.chain.aside--
	s.chain.mu.Unlock()
}

// order is called with session.mu, in the order in which requests are taken, over whichever connection.
func (c *chain) order(j *job) {
	if j.op.fn == nil {
		return
	}
	d := *j.d // the request is read again
	node := d.U64()
	if d.Err() != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.tails[node]; t != nil {
		select {
		case <-t.done:
			delete(c.tails, node)
		default:
			j.after = t.done
		}
	}
	if j.h.Type == wire.MsgFileStream {
		if c.tails == nil {
			c.tails = map[uint64]*keptAnswer{}
		}
		c.tails[node] = j.kept
	}
}
