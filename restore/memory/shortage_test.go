package memory

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestForkWaitsForMemory: while memory does not suffice for a child's copies of what is missing, FORK is not read and the fork has not
// returned; when it does, all is as ever.
func TestForkWaitsForMemory(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "fork")
	var room atomic.Uint64
	e := engineFor(t, w, Options{Room: room.Load, ForkWait: time.Hour, FaultPages: 1})
	h := newHandler(e, 2)
	defer h.stop()
	e.SetBringer(h)
	w.go1()
	kerneltest.Eventually(t, "a fork to be held", func() bool { return e.Stats().ForksHeld == 1 })
	asked := e.Stats()
	for range 3 { // it is looked at again and again
		looked := time.Now()
		kerneltest.Eventually(t, "memory to be measured", func() bool {
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.shortage.looked.After(looked)
		})
	}
	if s := e.Stats(); s.Forks != 0 || s.ForksHeld != 1 || s.PagesCopied != asked.PagesCopied {
		t.Errorf("held, and yet %+v", s)
	}
	room.Store(1 << 40)
	w.wait()
	if s := e.Stats(); s.Forks != 8 || s.LostPages != 0 {
		t.Errorf("%+v", s)
	}
}

// TestForkWaitsInVain: memory stays short, the fork goes on all the same. Every fork waits anew.
func TestForkWaitsInVain(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "fork")
	e := engineFor(t, w, Options{Room: func() uint64 { return 0 }, ForkWait: time.Millisecond, FaultPages: 1})
	h := newHandler(e, 2)
	defer h.stop()
	e.SetBringer(h)
	w.go1()
	w.wait()
	if s := e.Stats(); s.Forks != 8 || s.ForksHeld == 0 || s.LostPages != 0 {
		t.Errorf("%+v", s)
	}
}
