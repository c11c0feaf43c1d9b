package main

import (
	"strings"
	"testing"
	"time"

	"github.com/lazymig/lazymig/migrate"
)

// What is printed while memory comes is one line that is replaced, with how much is here and left, faults, waits, and when it ends.
func TestView(t *testing.T) {
	var out strings.Builder
	p := &printer{out: &out}
	start := time.Unix(1000, 0)
	at := func(s float64, e migrate.Event) migrate.Event {
		e.Time = start.Add(time.Duration(s * float64(time.Second)))
		return e
	}
	const gb = 1 << 30
	p.print(at(0, migrate.Event{Event: "progress", LeftBytes: gb})) // before anything is known
	if out.Len() > 0 {
		t.Errorf("%q", out.String())
	}
	p.print(at(0, migrate.Event{Event: "frozen", MemoryBytes: gb}))
	p.print(at(0, migrate.Event{Event: "resumed", MemoryBytes: gb, TargetPID: 7}))
	out.Reset()
	p.print(at(1, migrate.Event{Event: "progress", LeftBytes: gb / 2, Faults: 100, StallMS: 500}))
	want := "\r  [###############...............]  50 %, 512 of 1024 MB here, 512 left; 100 faults/s, waited 0.5 s (0.5 threads now); 537 MB/s, 1.0 s to go"
	if got := out.String(); got != want {
		t.Errorf("%q, not\n%q", got, want)
	}
	out.Reset()
	p.print(at(8, migrate.Event{Event: "progress", LeftBytes: gb / 4, Faults: 100, StallMS: 500}))
	got := out.String()
	for _, part := range []string{"75 %", "256 left", "; 0 faults/s", "(0.0 threads now)", "38 MB/s", "7.0 s to go"} {
		if !strings.Contains(got, part) {
			t.Errorf("%q has no %q", got, part)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%q does not cover the line before: %d", got, len(want))
	}
	p.print(at(9, migrate.Event{Event: "progress", LeftBytes: gb / 4}))
	out.Reset()
	p.print(at(10, migrate.Event{Event: "drained", MemoryBytes: gb, DrainMS: 10000, Faults: 100, StallMS: 1500}))
	if got := out.String(); !strings.HasPrefix(got, "\n  drained in 10.00 s") || !strings.Contains(got, "waited 1.5 s in all") {
		t.Errorf("%q", got)
	}
}
