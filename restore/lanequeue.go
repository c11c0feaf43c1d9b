package restore

import "sync"

// laneQueue holds a handler's wants of one lane while the lane is away. It is as
// long as there are slots, and surveys at once, at most.
type laneQueue struct {
	mu     sync.Mutex
	cond   *sync.Cond
	q      []slotWant
	gen    uint64 // of the connection; raised by up
	isUp   bool
	closed bool
}

func newLaneQueue() *laneQueue {
	q := &laneQueue{}
	q.cond = sync.NewCond(&q.mu)
	return q
}

// direct says that w may be sent at once, on connection gen: the lane is up and nothing waits before it. Else w is queued.
func (q *laneQueue) direct(w slotWant) (gen uint64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.isUp && len(q.q) == 0 {
		return q.gen, true
	}
	q.q = append(q.q, w)
	q.cond.Signal()
	return 0, false
}

// pop waits for a want and a connection. gen is the connection's, for again.
func (q *laneQueue) pop() (w slotWant, gen uint64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && (len(q.q) == 0 || !q.isUp) {
		q.cond.Wait()
	}
	if q.closed {
		return w, 0, false
	}
	w, q.q = q.q[0], q.q[1:]
	return w, q.gen, true
}

// again takes back a want whose connection gen was lost.
func (q *laneQueue) again(w slotWant, gen uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if gen == q.gen {
		q.isUp = false
	}
	q.q = append([]slotWant{w}, q.q...)
	q.cond.Signal()
}

// up says that there is a new connection.
func (q *laneQueue) up() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gen++
	q.isUp = true
	q.cond.Signal()
}

func (q *laneQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.cond.Broadcast()
}
