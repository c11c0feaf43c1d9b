package migrate

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/lazymig/lazymig/wire"
)

const (
	abortSoon = time.Minute      // so long the target is tried often
	abortLate = 30 * time.Second // then
	abortTime = 24 * time.Hour
)

// tellAborted sees to it that a target, which may hold the restored tree and ask for the grant, learns that there is none: also when
// the connection was cut. The tree runs here already; nobody waits for this.
func tellAborted(d *dialer, cause error, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), abortTime)
	defer cancel()
	began := time.Now()
	for wait := backoffMin; ; wait = min(2*wait, backoffMax) {
		c, err := d.dial(ctx, wire.LaneControl)
		if err == nil {
			again := newSession(c, nil)
			err = again.send(wire.MsgState, stateMsg{State: Aborted, Note: trim(cause.Error()), Token: d.token})
			ok := err == nil && heard(again)
			again.close()
			if ok {
				return
			}
		}
		log.Debug("tell target that the migration was given up", "err", err)
		if time.Since(began) > abortSoon {
			wait = abortLate
		}
		select {
		case <-time.After(wait + rand.N(wait)):
		case <-ctx.Done():
			log.Error("the target could not be told that the migration was given up; it may hold the tree, which never runs there", "err", err)
			return
		}
	}
}

// heard waits for the end of a session whose last word was a farewell, and says whether the peer has answered it. That its connection ends is no
// answer: an agent that was killed leaves what it held to the next one.
func heard(s *session) bool {
	answered := false
	for f := range s.frames { // what it still says changes nothing
		answered = answered || f.h.Type == wire.MsgError || f.h.Type == wire.MsgState
	}
	return answered
}
