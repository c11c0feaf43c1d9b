package migrate

import (
	"encoding/json"
	"time"
)

// Event is what a migration tells its viewers: one JSON object a line with --json. docs/events.md tells it to people.
type Event struct {
	Event string    `json:"event"` // one of those in docs/events.md
	Time  time.Time `json:"time"`
	ID    string    `json:"id"`

	Text        string    `json:"text,omitempty"`        // notice
	PID         int       `json:"pid,omitempty"`         // on the source
	TargetPID   int       `json:"target_pid,omitempty"`  // in the agent's PID namespace
	DowntimeMS  float64   `json:"downtime_ms,omitempty"` // first instruction that could not run to first that could
	ClockErrMS  float64   `json:"clock_error_ms,omitempty"`
	DumpMS      float64   `json:"dump_ms,omitempty"`
	TransferMS  float64   `json:"transfer_ms,omitempty"`
	RestoreMS   float64   `json:"restore_ms,omitempty"`
	FillMS      float64   `json:"fill_ms,omitempty"` // memory that came before the resume, where the mode wants that
	GrantMS     float64   `json:"grant_ms,omitempty"`
	Mode        string    `json:"mode,omitempty"`             // chosen
	Forecast    *Forecast `json:"forecast,omitempty"`         // chosen, done
	Measured    *Measured `json:"measured,omitempty"`         // chosen: what the forecast is made of
	AheadMS     float64   `json:"ahead_ms,omitempty"`         // before the freeze
	AheadBytes  uint64    `json:"ahead_bytes,omitempty"`      // sent then
	AheadGood   uint64    `json:"ahead_good_bytes,omitempty"` // of these, not written since
	Rounds      int       `json:"ahead_rounds,omitempty"`
	Hot         string    `json:"hot,omitempty"`             // how it was found which pages are in use
	HotBytes    uint64    `json:"hot_bytes,omitempty"`       // that are
	HotFirst    uint64    `json:"hot_first_bytes,omitempty"` // of these, pushed before all else
	DrainMS     float64   `json:"drain_ms,omitempty"`
	MemoryBytes uint64    `json:"memory_bytes,omitempty"` // present at the freeze
	LeftBytes   uint64    `json:"left_bytes,omitempty"`   // progress
	BytesSent   uint64    `json:"bytes_sent,omitempty"`
	Faults      uint64    `json:"faults,omitempty"`
	FaultP50US  float64   `json:"fault_p50_us,omitempty"`
	FaultP99US  float64   `json:"fault_p99_us,omitempty"`
	StallMS     float64   `json:"stall_ms,omitempty"`        // in which threads have waited for pages, added up
	Prefetched  uint64    `json:"prefetched,omitempty"`      // pages, or steps of a stride, sent before the thread that goes there has faulted on them
	PrefetchHit uint64    `json:"prefetch_hits,omitempty"`   // of those: passed without a fault
	Forwarded   uint64    `json:"files_forwarded,omitempty"` // distinct files reached over the network
	FileTrips   uint64    `json:"file_trips,omitempty"`      // round trips for files that the restore waited for, one after the other at worst
	PageTrips   uint64    `json:"page_trips,omitempty"`      // the same for pages
	TCPClosed   int       `json:"tcp_closed,omitempty"`

	StopMS      float64  `json:"stop_ms,omitempty"` // detached: what follows, too
	SettleMS    float64  `json:"settle_ms,omitempty"`
	Descriptors int      `json:"descriptors,omitempty"`
	Mappings    int      `json:"mappings,omitempty"`
	FilesMoved  int      `json:"files_moved,omitempty"`
	FileBytes   int64    `json:"file_bytes,omitempty"` // files: that are to come
	FilesHere   int      `json:"files_here,omitempty"` // files
	FilesLeft   int      `json:"files_left,omitempty"`
	Removed     int      `json:"removed,omitempty"`  // files, from the source
	Kept        []string `json:"kept,omitempty"`     // what was to be removed from there and is not, and why
	Stays       []string `json:"stays,omitempty"`    // why the tree is not detached
	Residual    []string `json:"residual,omitempty"` // detached but for these
	Places      []string `json:"places,omitempty"`   // detached: what is at its own path on the target
	Aside       []string `json:"aside,omitempty"`    // what is in the store there instead, and why

	Stage       string `json:"stage,omitempty"` // failed
	Error       string `json:"error,omitempty"`
	SourceState string `json:"source_state,omitempty"` // running, frozen, gone
	Status      *int   `json:"status,omitempty"`       // exited: as wait status
}

// MarshalJSON leaves out what is zero, except of the figures that every done has.
func (e Event) MarshalJSON() ([]byte, error) {
	type plain Event
	if e.Event != "done" {
		return json.Marshal(plain(e))
	}
	return json.Marshal(struct { // its own fields hide those of plain
		plain
		TargetPID   int     `json:"target_pid"`
		DowntimeMS  float64 `json:"downtime_ms"`
		DumpMS      float64 `json:"dump_ms"`
		TransferMS  float64 `json:"transfer_ms"`
		RestoreMS   float64 `json:"restore_ms"`
		DrainMS     float64 `json:"drain_ms"`
		MemoryBytes uint64  `json:"memory_bytes"`
		BytesSent   uint64  `json:"bytes_sent"`
		Faults      uint64  `json:"faults"`
		FaultP50US  float64 `json:"fault_p50_us"`
		FaultP99US  float64 `json:"fault_p99_us"`
		Forwarded   uint64  `json:"files_forwarded"`
	}{
		plain(e), e.TargetPID, e.DowntimeMS, e.DumpMS, e.TransferMS, e.RestoreMS, e.DrainMS,
		e.MemoryBytes, e.BytesSent, e.Faults, e.FaultP50US, e.FaultP99US, e.Forwarded,
	})
}
