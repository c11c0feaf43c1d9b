package main

import (
	"fmt"
	"math"
	"slices"
)

const movesTitle = "# Benchmarks"

// report collects outcomes and gives medians.
type report struct {
	sizes []int
	moves map[key][]*outcome
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

func formatted(format string, f float64) string {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return "–"
	}
	return fmt.Sprintf(format, f)
}

// ratio is how much of stock CRIU's figure lazymig's is.
func (r *report) ratio(mb int, of func(*outcome) float64) float64 {
	return r.median("lazymig", mb, of) / r.median("stock", mb, of)
}

// number is what JSON can hold: null where nothing was measured.
func number(f float64) any {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil
	}
	return math.Round(f*1000) / 1000
}
