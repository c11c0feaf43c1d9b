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
