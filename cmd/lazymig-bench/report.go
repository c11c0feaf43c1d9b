package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

const movesTitle = "# Benchmarks"

// report collects outcomes and prints medians.
type report struct {
	sizes   []int
	runs    int
	args    []string
	machine machine
	moves   map[key][]*outcome
}

type key struct {
	system string
	mb     int
}

func (r *report) add(system string, mb int, o *outcome) {
	if r.moves == nil {
		r.moves = map[key][]*outcome{}
	}
	r.moves[key{system, mb}] = append(r.moves[key{system, mb}], o)
}

func sortFloats(f []float64) { slices.Sort(f) }

// quantile of sorted values; NaN if there are none.
func quantile(f []float64, q float64) float64 {
	if len(f) == 0 {
		return math.NaN()
	}
	return f[min(int(q*float64(len(f))), len(f)-1)]
}

// median of one figure over the runs; NaN without any.
func (r *report) median(system string, mb int, figure func(*outcome) float64) float64 {
	var f []float64
	for _, o := range r.moves[key{system, mb}] {
		f = append(f, figure(o))
	}
	sortFloats(f)
	return quantile(f, 0.5)
}

// figures are the rows of each size.
var figures = []struct {
	name, format string
	of           func(*outcome) float64
}{
	{"pause that the process sees, ms", "%.1f", func(o *outcome) float64 { return o.pauseMS }},
	{"downtime_ms as lazymig says", "%.1f", func(o *outcome) float64 { return zeroIsNone(o.downtimeMS) }},
	{"longest pause of all, ms", "%.1f", func(o *outcome) float64 { return o.longestMS }},
	{"drain, MB/s", "%.0f", func(o *outcome) float64 { return zeroIsNone(o.drainMBs()) }},
	{"resumed to drained, ms", "%.0f", func(o *outcome) float64 { return zeroIsNone(float64(o.drained.Sub(o.resumed).Microseconds()) / 1000) }},
	{"memory copied ahead, for ms", "%.0f", func(o *outcome) float64 { return zeroIsNone(o.aheadMS) }},
	{"bytes sent / memory", "%.2f", func(o *outcome) float64 { return zeroIsNone(float64(o.sent) / float64(o.bytes)) }},
	{"faults of the toucher, ms in all", "%.0f", func(o *outcome) float64 { return sum(o.faultUS) / 1000 }},
	{"fault p50, µs", "%.0f", faultAt(0.5)},
	{"fault p99, µs", "%.0f", faultAt(0.99)},
	{"CPU, s", "%.2f", func(o *outcome) float64 { return o.cpuSeconds }},
}

func faultAt(q float64) func(*outcome) float64 {
	return func(o *outcome) float64 { return quantile(o.faultUS, q) }
}

func sum(l []float64) (s float64) {
	for _, f := range l {
		s += f
	}
	return s
}

func zeroIsNone(f float64) float64 {
	if f == 0 {
		return math.NaN()
	}
	return f
}

func cell(format string, f float64) string {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return "–"
	}
	return fmt.Sprintf(format, f)
}

func (r *report) markdown() string {
	var b strings.Builder
	m := &r.machine
	fmt.Fprintf(&b, movesTitle+"\n\nMade by `make bench`")
	if len(r.args) > 0 {
		fmt.Fprintf(&b, " (`lazymig-bench %s`)", strings.Join(r.args, " "))
	}
	fmt.Fprintf(&b, ": medians of %d moves; all in one run, the systems take turns. Both hosts are namespaces of one machine:\n%d × %s, %d GB, Linux %s; load %s before, %s after.\n\n",
		r.runs, m.cpus, m.cpu, m.memory>>30, m.kernel, m.loadBefore, m.loadAfter)
	b.WriteString("The workload takes pause and faults itself: one thread notes gaps by CLOCK_REALTIME, another touches random pages. CRIU is 4.2 with warm\n" +
		"caches, raised pipe limits, no encryption, and images that are copied from tmpfs to tmpfs; lazymig uses TLS 1.3, except where\n" +
		"it says --cleartext. MB/s from resumed to drained. \"ratio\" is lazymig / CRIU lazy-pages, with encryption and (in brackets) without.\n")
	for _, mb := range r.sizes {
		fmt.Fprintf(&b, "\n## %d MB\n\n| |", mb)
		shown := 0
		for _, s := range systems {
			if r.measured(s.name) {
				fmt.Fprintf(&b, " %s |", s.what)
				shown++
			}
		}
		b.WriteString(" ratio |\n|---|" + strings.Repeat("---|", shown+1) + "\n")
		for _, f := range figures {
			fmt.Fprintf(&b, "| %s |", f.name)
			for _, s := range systems {
				if !r.measured(s.name) {
					continue
				}
				fmt.Fprintf(&b, " %s |", cell(f.format, r.median(s.name, mb, f.of)))
			}
			fmt.Fprintf(&b, " %s (%s) |\n", cell("%.2f", r.ratio("lazymig", mb, f.of)), cell("%.2f", r.ratio("cleartext", mb, f.of)))
		}
	}
	return b.String()
}

// measured says whether a system was moved by at all.
func (r *report) measured(system string) bool {
	for k := range r.moves {
		if k.system == system {
			return true
		}
	}
	return false
}

// ratio is how much of stock CRIU's figure a system's is.
func (r *report) ratio(system string, mb int, of func(*outcome) float64) float64 {
	return r.median(system, mb, of) / r.median("stock", mb, of)
}

// lastLine prints ratios, and the line that machines read: downtimes of lazymig, and ratios at the largest size.
func (r *report) lastLine(w io.Writer) error {
	most := r.sizes[len(r.sizes)-1]
	first := r.sizes[0]
	fmt.Fprintf(w, "pause at %d MB / at %d MB: %s\n", most, first,
		cell("%.2f", r.median("lazymig", most, figures[0].of)/r.median("lazymig", first, figures[0].of)))
	down, stock, clear := map[string]any{}, map[string]any{}, map[string]any{}
	for _, mb := range r.sizes {
		down[strconv.Itoa(mb)] = number(r.median("lazymig", mb, figures[0].of))
		stock[strconv.Itoa(mb)] = number(r.median("stock", mb, figures[0].of))
		clear[strconv.Itoa(mb)] = number(r.ratio("cleartext", mb, (*outcome).drainMBs))
	}
	line, err := json.Marshal(map[string]any{
		"downtime_ms": down, "stock_downtime_ms": stock,
		"drain_ratio":           number(r.ratio("lazymig", most, (*outcome).drainMBs)),
		"cleartext_drain_ratio": clear,
		"fault_p50_ratio":       number(r.ratio("lazymig", most, faultAt(0.5))),
		"fault_p99_ratio":       number(r.ratio("lazymig", most, faultAt(0.99))),
	})
	if err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", line)
	return err
}

// number is what JSON can hold: null where nothing was measured.
func number(f float64) any {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil
	}
	return math.Round(f*1000) / 1000
}
