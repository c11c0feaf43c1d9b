package restore

import (
	"sync"

	"github.com/lazymig/lazymig/wire"
)

// laneQueue holds a handler's wants of one kind, urgent or bulk, while none of its lanes is there. It is as
// long as there are slots, and surveys at once, at most. A want goes over the lane with the fewest under way; one whose lane
// is lost is asked for on another, or on the next that comes.
type laneQueue struct {
	mu     sync.Mutex
	cond   *sync.Cond
	q      []slotWant
	lanes  map[wire.Lane]*laneState
	closed bool
}

// laneState is one lane.
type laneState struct {
	gen    uint64 // of the connection; raised by up
	isUp   bool
	flying int
}

// via is the connection that a want goes over.
type via struct {
	lane wire.Lane
	gen  uint64
}

func newLaneQueue() *laneQueue {
	q := &laneQueue{lanes: map[wire.Lane]*laneState{}}
	q.cond = sync.NewCond(&q.mu)
	return q
}

// pick takes the lane with the fewest wants under way, if there is any. q.mu is held.
func (q *laneQueue) pick() (v via, ok bool) {
	var best *laneState
	for l, s := range q.lanes {
		if s.isUp && (best == nil || s.flying < best.flying || s.flying == best.flying && l < v.lane) {
			best, v = s, via{l, s.gen}
		}
	}
	if best != nil {
		best.flying++
	}
	return v, best != nil
}

// direct says that w may be sent at once, over v: a lane is up and nothing waits before it. Else w is queued.
func (q *laneQueue) direct(w slotWant) (v via, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.q) == 0 {
		if v, ok = q.pick(); ok {
			return v, true
		}
	}
	q.q = append(q.q, w)
	q.cond.Signal()
	return v, false
}

// pop waits for a want and a connection.
func (q *laneQueue) pop() (w slotWant, v via, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed {
		if len(q.q) > 0 {
			if v, ok = q.pick(); ok {
				w, q.q = q.q[0], q.q[1:]
				return w, v, true
			}
		}
		q.cond.Wait()
	}
	return w, v, false
}

// answered says that a want which went over v is not under way any more.
func (q *laneQueue) answered(v via) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.landed(v)
}

func (q *laneQueue) landed(v via) {
	if s := q.lanes[v.lane]; s != nil && s.gen == v.gen {
		s.flying--
	}
}

// again takes back a want whose connection was lost.
func (q *laneQueue) again(w slotWant, v via) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.landed(v)
	if s := q.lanes[v.lane]; s != nil && v.gen == s.gen {
		s.isUp = false
	}
	q.q = append([]slotWant{w}, q.q...)
	q.cond.Signal()
}

// up says that a lane has a new connection.
func (q *laneQueue) up(lane wire.Lane) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.lanes[lane]
	if s == nil {
		s = &laneState{}
		q.lanes[lane] = s
	}
	s.gen++
	s.isUp, s.flying = true, 0
	q.cond.Signal()
}

// flying is how many wants are under way.
func (q *laneQueue) flying() (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.lanes {
		n += s.flying
	}
	return n
}

func (q *laneQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.cond.Broadcast()
}
