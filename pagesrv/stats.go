package pagesrv

import (
	"sync/atomic"

	"github.com/lazymig/lazymig/wire"
)

type laneStats struct{ requests, bytes, data, zero, errors atomic.Uint64 }

// LaneStats counts what one lane has done.
type LaneStats struct {
	Requests  uint64
	Bytes     uint64 // of page contents sent, compressed or not
	DataPages uint64
	ZeroPages uint64
	Errors    uint64 // requests that were answered by an error as a whole
}

// Stats counts what a server has done.
type Stats struct{ Urgent, Bulk LaneStats }

func (s *Server) stats(lane wire.Lane) *laneStats {
	if lane == wire.LaneUrgent {
		return &s.urgent
	}
	return &s.bulk
}

// Stats tells what has been served so far.
func (s *Server) Stats() Stats {
	get := func(l *laneStats) LaneStats {
		return LaneStats{
			Requests: l.requests.Load(), Bytes: l.bytes.Load(), DataPages: l.data.Load(),
			ZeroPages: l.zero.Load(), Errors: l.errors.Load(),
		}
	}
	return Stats{Urgent: get(&s.urgent), Bulk: get(&s.bulk)}
}
