package migrate

import (
	"slices"
	"sync"

	"github.com/lazymig/lazymig/wire"
)

// laneNews is what happens to lanes, for the target's state machine, which need not listen all the time: whoever tells it never waits, since the one
// that loses a lane may be who passes answers on, too. Of each lane the last word counts: a connection that came is forgotten when
// it is lost again, and one that is missing when it has come, whatever was heard of in between.
type laneNews struct {
	some chan struct{} // there is something to take

	mu   sync.Mutex
	last map[wire.Lane]bool // true: it is to be asked for; false: it has come
}

func newLaneNews() *laneNews {
	return &laneNews{some: make(chan struct{}, 1), last: map[wire.Lane]bool{}}
}

func (n *laneNews) say(missing bool, lanes ...wire.Lane) {
	n.mu.Lock()
	for _, l := range lanes {
		n.last[l] = missing
	}
	n.mu.Unlock()
	select {
	case n.some <- struct{}{}:
	default:
	}
}

// take is to be called after a receive from some.
func (n *laneNews) take() (missing, come []wire.Lane) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for l, is := range n.last {
		if is {
			missing = append(missing, l)
		} else {
			come = append(come, l)
		}
	}
	clear(n.last)
	slices.Sort(missing)
	slices.Sort(come)
	return missing, come
}
