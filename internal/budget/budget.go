// Package budget shares what a migration may take of the line: one rate for memory and files together.
//
// What somebody waits for (a fault, an operation of the tree) is counted and never waits itself. Memory that is pushed waits until the line
// would be free at the rate, and files that are pushed until no memory waits either. No debt is forgiven, and no more than burst is saved up.
package budget

import (
	"sync"
	"time"
)

// burst is how long a line may have been idle for what comes then to be let through at once.
const burst = 20 * time.Millisecond

// Budget is a rate that is shared. A nil one has no limit. All methods may be called at the same time.
type Budget struct {
	rate float64 // bytes a second

	mu     sync.Mutex
	free   time.Time     // when all that was let through would be over the line
	memory int           // calls of Memory that wait
	none   chan struct{} // closed when there are no more of them; nil: there are none
}

// New makes one of so many bytes a second; 0: nil.
func New(rate uint64) *Budget {
	if rate == 0 {
		return nil
	}
	return &Budget{rate: float64(rate)}
}

// Spend counts bytes that somebody waits for.
func (b *Budget) Spend(n int) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spend(n, time.Now())
}

func (b *Budget) spend(n int, now time.Time) {
	if early := now.Add(-burst); b.free.Before(early) {
		b.free = early
	}
	b.free = b.free.Add(time.Duration(float64(n) / b.rate * float64(time.Second)))
}

// Memory waits until n bytes of memory may be pushed, or done is closed.
func (b *Budget) Memory(done <-chan struct{}, n int) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.memory++; b.none == nil {
		b.none = make(chan struct{})
	}
	defer func() {
		if b.memory--; b.memory == 0 {
			close(b.none)
			b.none = nil
		}
	}()
	for now := time.Now(); b.free.After(now); now = time.Now() {
		if !b.await(done, b.free.Sub(now), nil) {
			return
		}
	}
	b.spend(n, time.Now())
}

// Files waits until n bytes of files may be pushed, or done is closed.
func (b *Budget) Files(done <-chan struct{}, n int) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		now := time.Now()
		var more bool
		switch {
		case b.memory > 0:
			more = b.await(done, 0, b.none)
		case b.free.After(now):
			more = b.await(done, b.free.Sub(now), nil)
		default:
			b.spend(n, now)
			return
		}
		if !more {
			return
		}
	}
}

// await lets go of the lock until d (0: not) has passed, or event; false: done is closed.
func (b *Budget) await(done <-chan struct{}, d time.Duration, event <-chan struct{}) bool {
	b.mu.Unlock()
	defer b.mu.Lock()
	var after <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-after:
	case <-event:
	case <-done:
		return false
	}
	return true
}
