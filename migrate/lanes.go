package migrate

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/lazymig/lazymig/internal/urgent"
	"github.com/lazymig/lazymig/wire"
)

// lanes are the connections over which the source serves, dialed when the target asks, each served by a goroutine of its own.
//
// The target may ask twice, and its question may cross with a connection that is on its way. So while a lane is being dialed another question
// for it waits for that: whoever took the connection may be gone since. And a new connection never ends the one before, which the target gives up itself when it has the new one: closed from here,
// it would count as lost there and be asked for again, and so on.
//
// Before the grant a lane that can't be dialed is left to the target, which asks again or gives up. After it nobody gives up: it is tried again until it can be, and what could not
// be dialed before, which the target has asked for and waits for, too. Lanes live until close; whose question they are the answer to does not matter.
type lanes struct {
	mu      sync.Mutex
	redial  bool               // after the grant
	failed  map[wire.Lane]bool // could not be dialed before
	dialing map[wire.Lane]bool // true: once more
	stop    chan struct{}      // closed by close; nil before the first dial
	closed  bool
	wg      sync.WaitGroup
}

// dial opens lanes and serves them. It returns at once.
func (l *lanes) dial(ctx context.Context, s *Source, which []wire.Lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if l.stop == nil {
		l.stop, l.dialing, l.failed = make(chan struct{}), map[wire.Lane]bool{}, map[wire.Lane]bool{}
	}
	for _, lane := range which {
		if lane != wire.LaneFiles && lane != wire.LaneUrgent && !lane.Bulk() {
			s.log.Warn("target asks for an unknown lane", "lane", lane)
			continue
		}
		if lane == wire.LaneFiles && s.files == nil {
			s.log.Warn("the target asks for files; they are not served any more")
			continue
		}
		if _, ok := l.dialing[lane]; ok {
			l.dialing[lane] = true
			continue
		}
		l.dialing[lane] = false
		delete(l.failed, lane)
		l.wg.Go(func() {
			ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
			defer cancel()
			l.wg.Go(func() {
				select {
				case <-l.stop:
					cancel()
				case <-ctx.Done():
				}
			})
			var serving sync.WaitGroup
			defer serving.Wait()
			for again := true; again; {
				c := l.dialLane(ctx, s, lane)
				if c != nil {
					serving.Go(func() { serveLane(ctx, s, lane, c) })
				}
				l.mu.Lock()
				if again = (l.dialing[lane] || c == nil && l.redial) && ctx.Err() == nil; again {
					l.dialing[lane] = false
				} else {
					delete(l.dialing, lane)
					if c == nil {
						l.failed[lane] = true
					}
				}
				l.mu.Unlock()
			}
		})
	}
}

// granted dials what could not be dialed before, and gives up no more.
func (l *lanes) granted(ctx context.Context, s *Source) {
	l.mu.Lock()
	l.redial = true
	failed := slices.Collect(maps.Keys(l.failed))
	l.mu.Unlock()
	l.dial(ctx, s, failed)
}

// keepsOn says whether a lane that can't be dialed is tried again.
func (l *lanes) keepsOn() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.redial
}

// dialLane opens a connection; nil if it can't, or ctx has ended.
func (l *lanes) dialLane(ctx context.Context, s *Source, lane wire.Lane) *wire.Conn {
	wait := backoffMin
	for {
		c, err := s.d.dial(ctx, lane)
		if err == nil {
			return c
		}
		if ctx.Err() != nil || !l.keepsOn() {
			s.log.Warn("dial lane", "lane", lane, "err", err)
			return nil
		}
		select {
		case <-time.After(wait + rand.N(wait)):
		case <-ctx.Done():
			return nil
		}
		wait = min(2*wait, backoffMax)
	}
}

// serveLane serves one connection until it ends; the target asks for the next.
func serveLane(ctx context.Context, s *Source, lane wire.Lane, c *wire.Conn) {
	defer c.Close()
	var err error
	if lane == wire.LaneFiles {
		err = s.files.Serve(ctx, c)
	} else {
		select {
		case <-s.pagesReady:
			urgent.Share()
			err = s.pages.Serve(ctx, c, lane)
		case <-ctx.Done():
		}
	}
	s.log.Debug("lane has ended", "lane", lane, "err", err)
}

// close ends all and waits.
func (l *lanes) close() {
	l.mu.Lock()
	if !l.closed && l.stop != nil {
		close(l.stop)
	}
	l.closed = true
	l.mu.Unlock()
	l.wg.Wait()
}
