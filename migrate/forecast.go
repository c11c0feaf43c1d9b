package migrate

import (
	"fmt"
	"math"
	"time"
)

// Forecast is what a migration in a mode is expected to come to.
type Forecast struct {
	Mode       string  `json:"mode"`
	DowntimeMS float64 `json:"downtime_ms"`
	AheadMS    float64 `json:"ahead_ms"` // before the freeze
	DrainMS    float64 `json:"drain_ms"` // after the resume, until all memory is there
	StallMS    float64 `json:"stall_ms"` // of that, a thread that works waits for pages
	Bytes      uint64  `json:"bytes"`    // sent
}

func (f Forecast) String() string {
	return fmt.Sprintf("%s: frozen for %.0f ms, %.1f s before and %.1f s after that, in which a thread waits %.0f ms for pages, %d MB sent", f.Mode, f.DowntimeMS, f.AheadMS/1000, f.DrainMS/1000, f.StallMS, f.Bytes>>20)
}

// Measured is what forecasts are made of.
type Measured struct {
	Memory  uint64  `json:"memory_bytes"`
	Line    uint64  `json:"line_bytes_s"`
	Written uint64  `json:"written_bytes_s"` // of pages, each counted once
	Growth  float64 `json:"written_growth"`  // of that with time: 1 if other pages are written all the time, 0 if always the same
	Random  bool    `json:"written_at_random"`
	CPUs    float64 `json:"cpus"` // that it keeps busy
	TripMS  float64 `json:"trip_ms"`
	Tracked bool    `json:"tracked"` // writes were counted; else only what needs no such count is forecast
}

// conditions are what a forecast is made of.
type conditions struct {
	memory   float64       // bytes
	room     float64       // bytes that the target keeps of what is copied ahead
	rate     float64       // bytes a second of the line
	tracked  bool          // writes are counted: memory can be copied ahead
	compared bool          // by comparison, which is part of the pause
	seen     float64       // bytes a second of pages that were written while it was looked, each counted once
	writes   float64       // the same with those that were written again: what there would be in memory without end
	growth   float64       // of that: written bytes ~ time^growth
	random   bool          // not one page after the other
	busy     float64       // CPUs
	trip     time.Duration // round trip
	allowed  time.Duration // SourceOptions.MaxDowntime
}

// What the model takes for given. All from docs/modes.md, Measured.
const (
	basePause   = 45 * time.Millisecond  // a freeze without any memory on a small machine
	faultTime   = 700 * time.Microsecond // a fault while memory is pushed, beside the round trip
	localFault  = 100 * time.Microsecond // a fault at a page that was copied ahead
	readsOfCPU  = 500                    // pages a second that a busy CPU reads for the first time, as far as it does not write them
	runsAhead   = 32                     // faults of who goes through memory in order, compared with one who does not: the rest has been fetched before
	placeRate   = 500e6                  // bytes a second in which copies become the process's memory
	compareRate = 1e9                    // bytes a second
	scattered   = 24                     // of these pieces (restore/memory, smallWants × Options.Window)
	preOverhead = 25 * time.Millisecond  // the last round of pre, if it were empty
)

func (c *conditions) String() string {
	if !c.tracked {
		return fmt.Sprintf("the agent knows no other mode; the line takes %d MB a second", int(c.rate)>>20)
	}
	return fmt.Sprintf("%d MB a second are written of %d MB, and the line takes %d", int(c.seen)>>20, int(c.memory)>>20, int(c.rate)>>20)
}

func (c *conditions) measured() *Measured {
	return &Measured{
		Memory: uint64(c.memory), Line: uint64(c.rate), Written: uint64(c.seen), Growth: c.growth, Random: c.random, CPUs: c.busy,
		TripMS: ms(c.trip), Tracked: c.tracked,
	}
}

// written is how much of size bytes is written in a time: pages that are written again count once.
func (c *conditions) written(size, seconds float64) float64 {
	if size <= 0 || seconds <= 0 {
		return 0
	}
	looked := writesTime.Seconds()
	return size * (1 - math.Exp(-c.writes*looked*math.Pow(seconds/looked, c.growth)/size))
}

// scatter is how much longer memory takes, in milliseconds, because what is asked for lies between what was copied ahead: it is asked for in so many pieces at a time.
func (c *conditions) scatter(afar, ahead float64) float64 {
	if ahead <= 0 {
		return 0
	}
	runs := afar / pageSize * ahead / (afar + ahead) // of written pages that lie anywhere
	return ms(c.trip) * runs / scattered
}

// stall is how long a thread waits, in milliseconds, while so many bytes of memory come from afar and others are placed from what was copied ahead: its first touches of pages
// that are not there yet take a fault, and while it waits it touches nothing.
func (c *conditions) stall(afar, ahead float64) float64 {
	touched := c.writes/pageSize + c.busy*readsOfCPU // pages a second
	if !c.random {
		touched /= runsAhead
	}
	wait := func(bytes, took float64, each time.Duration) float64 {
		x := touched * each.Seconds() * bytes / c.memory / 2 // half of it is missing, in the middle
		return 1000 * took * x / (1 + x)
	}
	if c.memory <= 0 {
		return 0
	}
	return wait(afar, afar/c.rate+c.scatter(afar, ahead)/1000, c.trip+faultTime) + wait(ahead, ahead/placeRate, localFault)
}

// forecast of all modes that are possible.
func (c *conditions) forecast() map[string]Forecast {
	pause := ms(basePause + 2*c.trip)
	in := func(bytes float64) float64 { return 1000 * bytes / c.rate } // milliseconds
	all := map[string]Forecast{
		ModePost: {ModePost, pause, 0, in(c.memory), c.stall(c.memory, 0), uint64(c.memory)},
		ModeStop: {ModeStop, pause + in(c.memory), 0, 0, 0, uint64(c.memory)},
	}
	if !c.tracked {
		return all
	}
	ahead := min(c.memory, c.room)
	again := ms(preOverhead) // the last round of pre, if it were empty
	if c.compared {
		compared := 1000 * ahead / compareRate
		pause += compared
		again += compared
	}
	rest := c.memory - ahead
	rounds := func(most int, enough func(sent, left float64) bool) (took, sent, left float64) {
		todo := ahead
		for n := 1; ; n++ {
			t := in(todo)
			took += t
			sent += todo
			left = c.written(ahead, t/1000)
			if n == most || enough(todo, left) {
				return took, sent, left
			}
			todo = left
		}
	}
	took, sent, left := rounds(mostRounds, func(sent, left float64) bool { return left <= littleLeft || left > worthwhile*sent })
	all[ModeHybrid] = Forecast{ModeHybrid, pause, took, in(left+rest) + c.scatter(left, ahead-left), c.stall(left+rest, ahead-left), uint64(sent + left + rest)}
	before := math.Inf(1)
	took, sent, left = rounds(mostPreRounds, func(_, left float64) bool {
		ends := in(left) <= ms(c.allowed) || left > shrinks*before
		before = left
		return ends
	})
	all[ModePre] = Forecast{ModePre, pause + again + in(left+rest), took, 0, c.stall(0, ahead), uint64(sent + left + rest)}
	return all
}

// Score is what auto makes small, in milliseconds: the pause, half of the time for which a thread that works waits for pages, and a fiftieth of the time for which a line of so
// many bytes a second is busy.
func Score(downtimeMS, stallMS, bytes, rate float64) float64 {
	return downtimeMS + stallMS/2 + 1000*bytes/rate/50
}

func (c *conditions) score(f Forecast) float64 {
	return Score(f.DowntimeMS, f.StallMS, float64(f.Bytes), c.rate)
}

// modeOrder is that of tables, and of choice where modes are about equal: what begins at once comes first, and what needs no room on the target.
var modeOrder = []string{ModePost, ModeHybrid, ModePre, ModeStop}

// Modes whose scores are no further apart are about equal: a pause is not the same twice.
const (
	alikePart = 1.05
	alikeMS   = 10
)

// best is the mode with the smallest score, or the first that is about as good.
func (c *conditions) best() Forecast {
	all := c.forecast()
	least := math.Inf(1)
	for _, f := range all {
		least = min(least, c.score(f))
	}
	for _, m := range modeOrder {
		if f, ok := all[m]; ok && c.score(f) <= max(least*alikePart, least+alikeMS) {
			return f
		}
	}
	return all[ModePost] // is always there
}

// outlook is for people.
func (c *conditions) outlook() *Outlook {
	o := &Outlook{Best: c.best().Mode, Text: c.String(), Measured: c.measured()}
	all := c.forecast()
	for _, m := range modeOrder {
		if f, ok := all[m]; ok {
			o.Forecasts = append(o.Forecasts, f)
		}
	}
	return o
}
