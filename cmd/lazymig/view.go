package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lazymig/lazymig/migrate"
)

const (
	barWidth = 30
	// rateOver is over how long rates are taken: long enough not to jump, short enough to follow a line.
	rateOver = 2 * time.Second
)

// drainView makes one line of what is known of memory that comes while the process runs: how much is here and left, how often and how long its threads
// wait for it, and when all will be there.
type drainView struct {
	total uint64 // memory, bytes
	past  []migrate.Event
	width int
}

// begin takes the memory that there is from an event.
func (v *drainView) begin(e migrate.Event) {
	v.total = e.MemoryBytes
	if e.Event == "resumed" {
		e.LeftBytes = e.MemoryBytes - min(e.AheadGood, e.MemoryBytes)
		v.past = []migrate.Event{e}
	}
}

// progress is the line after one more event; empty as long as nothing is known.
func (v *drainView) progress(e migrate.Event) string {
	if v.total == 0 {
		return ""
	}
	left := min(e.LeftBytes, v.total)
	here := v.total - left
	n := int(float64(here) / float64(v.total) * barWidth)
	line := fmt.Sprintf("  [%s%s] %3.0f %%, %d of %d MB here, %d left", strings.Repeat("#", n), strings.Repeat(".", barWidth-n),
		100*float64(here)/float64(v.total), here>>20, v.total>>20, left>>20)
	v.past = append(v.past, e)
	for len(v.past) > 2 && e.Time.Sub(v.past[1].Time) >= rateOver {
		v.past = v.past[1:]
	}
	was := v.past[0]
	d := e.Time.Sub(was.Time).Seconds()
	if len(v.past) < 2 || d <= 0 {
		return line
	}
	line += fmt.Sprintf("; %.0f faults/s", float64(e.Faults-min(was.Faults, e.Faults))/d)
	if e.StallMS > 0 {
		line += fmt.Sprintf(", waited %s (%.1f threads now)", seconds(e.StallMS/1000), max(e.StallMS-was.StallMS, 0)/1000/d)
	}
	if came := float64(was.LeftBytes) - float64(left); came > 0 {
		line += fmt.Sprintf("; %.0f MB/s, %s to go", came/1e6/d, seconds(float64(left)/(came/d)))
	}
	return line
}

// wide is what a line has to be padded to, so that nothing of the one before stays.
func (v *drainView) wide(line string) int {
	v.width = max(v.width, utf8.RuneCountInString(line))
	return v.width
}

// seconds is a time for people.
func seconds(s float64) string {
	switch {
	case s >= 90:
		return time.Duration(s * float64(time.Second)).Round(time.Second).String()
	case s >= 10:
		return fmt.Sprintf("%.0f s", s)
	}
	return fmt.Sprintf("%.1f s", s)
}

// stalled is how long threads have waited in all.
func stalled(e migrate.Event) string {
	if e.StallMS == 0 {
		return ""
	}
	return fmt.Sprintf(", waited %s in all", seconds(e.StallMS/1000))
}
