package main

import (
	"errors"
	"math"
	"strings"
	"testing"
)

func moveOf(pause, p50 float64) *outcome {
	o := &outcome{pauseMS: pause, faultUS: []float64{p50, p50, p50}, bytes: 1 << 30}
	o.drained = o.resumed.Add(1 << 30)
	return o
}

// Ratios that miss their aims are told, those that are far outside, or were not measured, fail.
func TestQuick(t *testing.T) {
	for name, c := range map[string]struct {
		pause, p50, trip float64
		fails            bool
	}{
		"as it should be": {30, 200, 100, false},
		"worse":           {70, 600, 50, false},
		"grows":           {300, 200, 100, true},
		"slow faults":     {30, 5000, 100, true},
		"no figure":       {math.NaN(), 200, 100, true},
	} {
		r := &report{sizes: []int{64, 1024}}
		r.add("lazymig", 64, moveOf(30, 200))
		r.add("lazymig", 1024, moveOf(c.pause, c.p50))
		r.add("stock", 64, moveOf(30, 200))
		r.add("stock", 1024, moveOf(90, 200))
		var b strings.Builder
		if err := r.quick(&b, lineResult{TripsUS: []float64{c.trip}, Bytes: 1e9, Seconds: 1}); errors.Is(err, errFarOutside) != c.fails {
			t.Errorf("%s: %v\n%s", name, err, &b)
		}
	}
}
