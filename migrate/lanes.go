package migrate

import (
	"context"
	"math/rand/v2"
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
type lanes struct {
	redial bool // after the grant a lane that can't be dialed is tried again until it can

	mu      sync.Mutex
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
		l.stop, l.dialing = make(chan struct{}), map[wire.Lane]bool{}
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
		redial := l.redial
		l.wg.Go(func() {
			ctx, cancel := context.WithCancel(ctx)
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
				c := dialLane(ctx, s, lane, redial)
				if c != nil {
					serving.Go(func() { serveLane(ctx, s, lane, c) })
				}
				l.mu.Lock()
				if again = l.dialing[lane] && ctx.Err() == nil; again {
					l.dialing[lane] = false
				} else {
					delete(l.dialing, lane)
				}
				l.mu.Unlock()
			}
		})
	}
}

// dialLane opens a connection; nil if it can't, or ctx has ended.
func dialLane(ctx context.Context, s *Source, lane wire.Lane, redial bool) *wire.Conn {
	wait := backoffMin
	for {
		c, err := s.d.dial(ctx, lane)
		if err == nil {
			return c
		}
		if ctx.Err() != nil || !redial {
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
