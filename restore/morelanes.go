package restore

import (
	"time"

	"github.com/lazymig/lazymig/wire"
)

const (
	growEvery = 500 * time.Millisecond // how long a throughput is measured
	growWorth = 1.1                    // how much more it has to be with one lane more
)

// moreLanes asks for the bulk lanes beyond the first: those that are wanted from the beginning at once, others one by one for as long as the last brought
// more. It is started by the first bulk want, and ends when there is nothing to gain.
type moreLanes struct {
	first, most int
	ask         func(wire.Lane)
	bytes       func() uint64 // that have come over bulk lanes until now
	busy        func() bool   // something is under way on them
}

// run takes a turn at each tick, which are equally far apart.
func (m *moreLanes) run(tick <-chan time.Time) {
	have := max(m.first, 1)
	for n := 1; n < have; n++ {
		m.ask(wire.BulkLane(n))
	}
	var last, before float64 // bytes in a turn; before the last lane was asked for
	var at uint64
	measured, asked := false, false
	for have < m.most {
		if _, ok := <-tick; !ok {
			return
		}
		now := m.bytes()
		last, at = float64(now-at), now
		switch {
		case !m.busy() || last == 0: // nothing to be learned from
			measured = false
			continue
		case !measured: // the first whole turn, or that in which a lane was asked for
			measured = true
			continue
		case asked && last < growWorth*before:
			return
		}
		before = last
		m.ask(wire.BulkLane(have))
		have++
		measured, asked = false, true
	}
}
