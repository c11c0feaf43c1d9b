package store

import (
	"context"
	"sync"
	"time"
)

// pace bounds the requests for bulk that are under way, so that what a process waits for, on the same connection, is not behind them for
// long: as many as the line takes without a queue. The shortest time a request ever took is what one takes without others; while they
// take little longer there is room for more, and when they take longer by more than queueTime there are too many (the idea of LEDBAT,
// RFC 6817). While a process waits for an operation there are a quarter as many.
type pace struct {
	busy func() bool // a process waits for an operation

	mu    sync.Mutex
	free  sync.Cond
	limit float64
	now   int
	least time.Duration
	age   int // requests since least was seen
}

const (
	chunk     = 128 << 10 // bytes of one request
	minWindow = 2
	maxWindow = 48
	queueTime = 5 * time.Millisecond
	leastAge  = 2000 // requests after which the shortest time is looked for anew: the path may have become longer
)

func newPace(busy func() bool) *pace {
	p := &pace{busy: busy, limit: 4}
	p.free.L = &p.mu
	return p
}

// room is how many requests may be under way.
func (p *pace) room() int {
	if p.busy() {
		return max(1, int(p.limit/4))
	}
	return int(p.limit)
}

// do runs one request when there is room.
func (p *pace) do(ctx context.Context, fn func() error) error {
	stop := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.free.Broadcast()
	})
	defer stop()
	p.mu.Lock()
	for p.now > 0 && p.now >= p.room() && ctx.Err() == nil { // one is always let through: nobody else would wake this one
		p.free.Wait()
	}
	if err := ctx.Err(); err != nil {
		p.mu.Unlock()
		return err
	}
	p.now++
	p.mu.Unlock()
	began := time.Now()
	err := fn()
	p.done(time.Since(began))
	return err
}

func (p *pace) done(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now--
	if p.age++; p.least == 0 || took < p.least || p.age > leastAge {
		p.least, p.age = took, 0
	}
	if took > p.least+queueTime {
		p.limit = max(minWindow, p.limit-1/p.limit)
	} else {
		p.limit = min(maxWindow, p.limit+1/p.limit)
	}
	p.free.Broadcast()
}
