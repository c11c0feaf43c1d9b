package migrate

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Between the freeze and the grant each second of a target that is silent is one in which the tree stands still on account of nothing. So then it
// is watched: it pings often, whatever else it does (a restore of any size is no silence, nor are images that crawl over a slow link, since pings
// go the other way), and one that says nothing for silentTicks counts as lost.
//
// Ticks are counted, and not the time: on a machine that does not come to run this process they are late, and the answers may have come. Together
// with the thaw it must not be more than 2 s.
const (
	watchedPing = 250 * time.Millisecond
	silentTick  = 100 * time.Millisecond
	silentTicks = 15
)

// hearing is what is known of when the peer said something.
type hearing struct {
	frames  atomic.Uint64
	waiting atomic.Bool           // for a frame; else one is being passed on, and more may have come
	gone    atomic.Pointer[error] // why the connection was given up; nil: it was not
}

func (h *hearing) listen() { h.waiting.Store(true) }

func (h *hearing) something() {
	h.waiting.Store(false)
	h.frames.Add(1)
}

// watch gives a context that ends, with the connection, as soon as the peer has been silent for too long, until the function that it
// returns is called.
func (s *session) watch(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	quit := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		t := time.NewTicker(silentTick)
		defer t.Stop()
		quiet, last, since := 0, s.heard.frames.Load(), time.Now()
		for quiet < silentTicks {
			select {
			case <-t.C:
			case <-quit:
				return
			}
			if n := s.heard.frames.Load(); n != last || !s.heard.waiting.Load() {
				quiet, last, since = 0, n, time.Now()
				continue
			}
			quiet++
		}
		err := fmt.Errorf("the target has said nothing for %v", time.Since(since).Round(silentTick))
		s.heard.gone.Store(&err)
		cancel(fmt.Errorf("control connection: %w", err))
		_ = s.c.Cut() // who reads or writes is told
	})
	return ctx, sync.OnceFunc(func() {
		close(quit)
		watcher.Wait()
		cancel(nil)
	})
}
