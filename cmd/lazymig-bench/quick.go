package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/lazymig/lazymig/lab"
)

// `lazymig-bench -quick` is a guard against regressions: ratios that hold on a noisy machine, within three minutes. It fails only where
// something is far from what it should be; for figures that are worth comparing there is `make bench`.
const (
	quickArg  = "-quick"
	quickRuns = 2
	quickTime = 3 * time.Minute
)

var (
	quickSizes   = []int{64, 512}
	quickSystems = []string{"lazymig", "stock"}
)

func quickMain(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet(quickArg, flag.ContinueOnError)
	program := f.String("lazymig", "bin/lazymig", "the program, below the project's bin")
	verbose := f.Bool("v", false, "print logs of failures")
	if err := f.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, quickTime)
	defer cancel()
	root, err := projectRoot()
	if err != nil {
		return err
	}
	b, done, err := newMetered(ctx, root, *program, *verbose)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	r := &report{sizes: quickSizes}
	for _, mb := range quickSizes {
		for n := range quickRuns { // systems take turns, so that a slow minute hits all
			for _, name := range quickSystems {
				s, _ := systemNamed(name)
				o, err := b.measure(ctx, mb, s.move)
				if err != nil {
					return fmt.Errorf("move %d MB by %s: %w", mb, s.what, err)
				}
				fmt.Printf("%-9s %5d MB  run %d  %s\n", s.name, mb, n+1, o)
				r.add(s.name, mb, o)
			}
		}
	}
	line, err := b.quickLine(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("the line: %d round trips, p50 %.0f µs, p99 %.0f µs; %.0f MB/s by %d connections\n", len(line.TripsUS), quantile(line.TripsUS, 0.5), quantile(line.TripsUS, 0.99), line.mbs(), lineConns)
	return r.quick(os.Stdout, line)
}

// quickLine is what TLS gives between the hosts of a lab.
func (b *bench) quickLine(ctx context.Context) (r lineResult, err error) {
	l, err := lab.Up(ctx, lab.Options{Self: b.self, Share: b.share})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	return b.measureLine(ctx, l, 0, lineConns, quickSizes[len(quickSizes)-1])
}

// ratio is one that is judged: it should be at most (or, where more is better, at least) aim, and fails beyond the bound.
type ratio struct {
	what       string
	value      float64
	aim, bound float64
	more       bool // is better
}

func (r ratio) String() string {
	verdict := "reached"
	switch {
	case r.beyond(r.bound):
		verdict = "FAR OUTSIDE"
	case r.beyond(r.aim):
		verdict = "not reached"
	}
	return fmt.Sprintf("%-52s %7.2f   aim %5.2f: %s", r.what, r.value, r.aim, verdict)
}

// beyond is also true where nothing was measured.
func (r ratio) beyond(limit float64) bool {
	if r.more {
		return !(r.value >= limit)
	}
	return !(r.value <= limit)
}

var errFarOutside = errors.New("a ratio is far outside")

// quick judges what has been measured.
func (r *report) quick(w io.Writer, line lineResult) error {
	trip := quantile(line.TripsUS, 0.5) // µs
	least, most := r.sizes[0], r.sizes[len(r.sizes)-1]
	pause, p50, p99 := func(o *outcome) float64 { return o.pauseMS }, faultAt(0.5), faultAt(0.99)
	var err error
	for _, q := range []ratio{
		{what: fmt.Sprintf("pause at %d MB / at %d MB", most, least), value: r.median("lazymig", most, pause) / r.median("lazymig", least, pause), aim: 1.3, bound: 4},
		{what: fmt.Sprintf("pause / stock's at %d MB", most), value: r.ratio(most, pause), aim: 0.7, bound: 2},
		{what: fmt.Sprintf("drain in MB/s / stock's at %d MB", most), value: r.ratio(most, (*outcome).drainMBs), aim: 3, bound: 0.4, more: true},
		{what: fmt.Sprintf("fault p50 / stock's at %d MB", most), value: r.ratio(most, p50), aim: 1, bound: 4},
		{what: fmt.Sprintf("fault p99 / stock's at %d MB", most), value: r.ratio(most, p99), aim: 0.33, bound: 3},
		{what: fmt.Sprintf("fault p50 / an empty round trip (%.0f µs)", trip), value: r.median("lazymig", most, p50) / trip, aim: (trip + 50) / trip, bound: (trip + 2000) / trip},
		{what: fmt.Sprintf("fault p99 while it drains / 1 ms at %d MB", most), value: r.median("lazymig", most, p99) / 1000, aim: 1, bound: 50},
		{what: fmt.Sprintf("drain / a bare copy over TLS (%.0f MB/s)", line.mbs()), value: r.median("lazymig", most, (*outcome).drainMBs) / line.mbs(), aim: 0.7, bound: 0.05, more: true},
	} {
		fmt.Fprintln(w, q)
		if q.beyond(q.bound) {
			err = errFarOutside
		}
	}
	return err
}
