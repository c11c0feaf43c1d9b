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
	DrainMS    float64 `json:"drain_ms"` // after the resume, in which the process waits for pages
	Bytes      uint64  `json:"bytes"`    // sent
}

func (f Forecast) String() string {
	return fmt.Sprintf("%s: frozen for %.0f ms, %.1f s before and %.1f s after that, %d MB sent", f.Mode, f.DowntimeMS, f.AheadMS/1000, f.DrainMS/1000, f.Bytes>>20)
}

// conditions are what a forecast is made of.
type conditions struct {
	memory  float64       // bytes
	room    float64       // bytes that the target keeps of what is copied ahead
	rate    float64       // bytes a second of the line
	writes  float64       // bytes a second, of pages that are written for the first time
	trip    time.Duration // round trip
	allowed time.Duration // SourceOptions.MaxDowntime
}

// basePause is a freeze without any memory on a small machine, as docs/benchmarks.md has it.
const basePause = 40 * time.Millisecond

// written is how much of size bytes is written in a time: pages that are written again count once, as if all were written equally often.
func (c *conditions) written(size float64, seconds float64) float64 {
	if size <= 0 {
		return 0
	}
	return size * (1 - math.Exp(-c.writes*seconds/size))
}

// forecast of all modes.
func (c *conditions) forecast() map[string]Forecast {
	pause := ms(basePause + 2*c.trip)
	in := func(bytes float64) float64 { return 1000 * bytes / c.rate } // milliseconds
	ahead := min(c.memory, c.room)
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
	hybridTook, hybridSent, hybridLeft := rounds(mostRounds, func(sent, left float64) bool { return left <= littleLeft || left > worthwhile*sent })
	before := math.Inf(1)
	preTook, preSent, preLeft := rounds(mostPreRounds, func(_, left float64) bool {
		ends := in(left) <= ms(c.allowed) || left > shrinks*before
		before = left
		return ends
	})
	return map[string]Forecast{
		ModePost:   {ModePost, pause, 0, in(c.memory), uint64(c.memory)},
		ModeHybrid: {ModeHybrid, pause, hybridTook, in(hybridLeft + rest), uint64(hybridSent + hybridLeft + rest)},
		ModePre:    {ModePre, pause + in(preLeft+rest), preTook, 0, uint64(preSent + preLeft + rest)},
		ModeStop:   {ModeStop, pause + in(c.memory), 0, 0, uint64(c.memory)},
	}
}

// score is what auto makes small, in milliseconds: the pause, a quarter of the time in which pages are waited for, and a fiftieth of the time that
// the line is busy.
func (c *conditions) score(f Forecast) float64 {
	return f.DowntimeMS + f.DrainMS/4 + 1000*float64(f.Bytes)/c.rate/50
}

// best is the mode with the smallest score.
func (c *conditions) best() Forecast {
	all := c.forecast()
	best := all[ModePost]
	for _, m := range []string{ModeHybrid, ModePre} { // stop is never better than post
		if f := all[m]; c.score(f) < c.score(best) {
			best = f
		}
	}
	return best
}
