package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The matrix: systems × workloads × sizes × lines. Each place is measured in a lab of its own. One that fails is a row with the reason, and the run goes
// on. Runs take turns over all places, so that a bench that is ended early, by -for or by hand, has each of them as often as any other.

// ours and peers, without those that are only of interest by themselves.
var (
	modes     = []string{"lazymig", "hybrid", "pre", "stop", "auto"}
	everybody = append(slices.Clone(modes), "stock", "eager")
)

// block is a part of the matrix: all of its lists with all others.
type block struct {
	systems   []string
	workloads []string
	sizes     []int
	reserves  []int
	rtts      []time.Duration
	mbits     []int
}

func (k block) cells() (out []cell) {
	for _, mb := range k.sizes {
		for _, w := range k.workloads {
			for _, rtt := range k.rtts {
				for _, mbit := range k.mbits {
					for _, reserve := range k.reserves {
						for _, s := range k.systems {
							out = append(out, cell{workload: w, system: s, mb: mb, reserveGB: reserve, rtt: rtt, mbit: mbit})
						}
					}
				}
			}
		}
	}
	return out
}

// add puts blocks together, each place once.
func add(cells []cell, blocks ...block) []cell {
	for _, k := range blocks {
		k.systems, k.workloads = orElse(k.systems, everybody...), orElse(k.workloads, "uniform")
		k.sizes, k.reserves = orElse(k.sizes, 512), orElse(k.reserves, 0)
		k.rtts, k.mbits = orElse(k.rtts, 0), orElse(k.mbits, 0)
		for _, c := range k.cells() {
			if !slices.Contains(cells, c) {
				cells = append(cells, c)
			}
		}
	}
	return cells
}

// withLines puts a measure of each line before what is measured over it.
func withLines(cells []cell) (out []cell) {
	for _, c := range cells {
		if l := lineOf(c); !slices.Contains(out, l) {
			out = append(out, l)
		}
		out = append(out, c)
	}
	return out
}

// lineOf is the line that a cell's system moves over, without it.
func lineOf(c cell) cell {
	return cell{system: lineSystem, workload: lineWorkload, mb: lineMB, rtt: c.rtt, mbit: c.mbit}
}

func orElse[T any](l []T, other ...T) []T {
	if len(l) == 0 {
		return other
	}
	return l
}

const tera = 1024 // GB

// someCells take some 15 minutes a run on two cores, allCells four times as long.
func someCells() []cell {
	few := []string{"lazymig", "hybrid", "auto", "stock", "eager"}
	return add(nil,
		block{sizes: []int{64, 512, 2048}, workloads: []string{"paced"}},
		block{systems: few, workloads: []string{"idle", "uniform", "zipf", "writes", "redis"}},
		block{systems: []string{"lazymig", "stock"}, workloads: []string{"storm", "sequential", "jvm"}},
		block{systems: few, rtts: []time.Duration{6 * time.Millisecond}},
		block{systems: few, workloads: []string{"half"}, mbits: []int{1000}},
		block{systems: []string{"lazymig", "stock"}, sizes: []int{2048}, reserves: []int{tera}, workloads: []string{"paced"}},
	)
}

func allCells() []cell {
	return add(nil,
		block{sizes: []int{64, 512, 2048, 8192}, workloads: []string{"paced"}},
		block{systems: append(slices.Clone(everybody), "cleartext"), workloads: workloads},
		block{workloads: []string{"paced", "uniform", "redis"}, rtts: []time.Duration{time.Millisecond, 6 * time.Millisecond}},
		block{workloads: []string{"half", "uniform"}, mbits: []int{1000}},
		block{sizes: []int{2048}, reserves: []int{tera}, workloads: []string{"paced"}},
		block{systems: []string{"one", "two", "four", "lazymig"}, sizes: []int{2048}, workloads: []string{"paced"}, rtts: []time.Duration{0, 50 * time.Millisecond}},
	)
}

func matrixMain(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet("lazymig-bench", flag.ContinueOnError)
	all := f.Bool("matrix", false, "all of the matrix, not a part that takes a quarter of an hour a run")
	sys := f.String("systems", "", "only these: lazymig (post), cleartext, one, two, four (connections), hybrid, pre, stop, auto, stock, eager, plain")
	loads := f.String("workloads", "", "only these: "+strings.Join(workloads, ", "))
	sizes := f.String("sizes", "", "only these sizes, in MB")
	rtts := f.String("rtt", "", "only these round `TRIPS`, like 0,6ms (both for ours and for peers, by a process that holds back what it carries)")
	rates := f.String("rate", "", "only these rates of the line, in Mbit/s; 0: as fast as it is")
	reserve := f.Int("reserve", 0, "the memory is the first part of a reservation of so many `GB`")
	runs := f.Int("runs", 1, "how often each place is measured; medians are shown")
	limit := f.Duration("for", 0, "begin nothing any more after so long; 0: no limit")
	csv := f.String("csv", "docs/bench.csv", "rows to `FILE` below the project")
	more := f.Bool("append", false, "keep the rows that the file has")
	only := f.Bool("report", false, "measure nothing: report and plots from the file")
	out := f.String("out", "docs/benchmarks.md", "report to `FILE` below the project; empty: none")
	plots := f.String("plots", "docs/plots", "plots to this `DIRECTORY` below the project; empty: none")
	list := f.Bool("list", false, "say what would be measured")
	program := f.String("lazymig", "bin/lazymig", "the program, below the project's bin")
	verbose := f.Bool("v", false, "print logs of failures")
	if err := f.Parse(args); err != nil {
		return err
	}
	root, err := projectRoot()
	if err != nil {
		return err
	}
	t := &table{path: filepath.Join(root, *csv)}
	if *only {
		if err := t.load(); err != nil {
			return err
		}
		return t.publish(root, *out, *plots)
	}
	cells := someCells()
	if *all {
		cells = allCells()
	}
	if cells, err = choose(cells, *sys, *loads, *sizes, *rtts, *rates, *reserve); err != nil {
		return err
	}
	cells = withLines(cells)
	if *list {
		for _, c := range cells {
			fmt.Println(c)
		}
		fmt.Printf("%d places, %d times each\n", len(cells), *runs)
		return nil
	}
	if *more {
		if err := t.load(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	b, done, err := newBench(ctx, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	b.lazymig, b.verbose, b.load = filepath.Join(root, *program), *verbose, filepath.Join(filepath.Dir(b.self), "load")
	if err := compileLoads(ctx, b.load); err != nil {
		return err
	}
	t.machine.look()
	t.machine.args = strings.Join(args, " ")
	if err := t.run(ctx, b, cells, *runs, *limit); err != nil {
		return err
	}
	return t.publish(root, *out, *plots)
}

// run measures, and writes each row as soon as it is there.
func (t *table) run(ctx context.Context, b *bench, cells []cell, runs int, limit time.Duration) error {
	began := time.Now()
	if err := t.open(); err != nil {
		return err
	}
	defer t.file.Close()
	for n := range runs {
		for i, c := range cells {
			if ctx.Err() != nil || limit > 0 && time.Since(began) > limit {
				fmt.Printf("ended after %v, in run %d, at %d of %d\n", time.Since(began).Round(time.Second), n+1, i, len(cells))
				return nil
			}
			r := b.try(ctx, c, n+1)
			if r.reason != "" && ctx.Err() != nil {
				continue // it was ended
			}
			fmt.Printf("%4.0f s  run %d  %d/%d  %s\n", time.Since(began).Seconds(), n+1, i+1, len(cells), &r)
			if err := t.add(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// choose keeps what the flags name. Where they name something that the cells do not have, it is all that they name together.
func choose(cells []cell, systems, loads, sizes, rtts, rates string, reserve int) ([]cell, error) {
	if systems == "" && loads == "" && sizes == "" && rtts == "" && rates == "" && reserve == 0 {
		return cells, nil
	}
	k := block{systems: words(systems), workloads: words(loads), reserves: []int{reserve}}
	for _, s := range k.systems {
		if _, ok := systemNamed(s); !ok {
			return nil, fmt.Errorf("-systems %q: there is none", s)
		}
	}
	for _, w := range k.workloads {
		if _, err := newLoad(w); err != nil {
			return nil, err
		}
	}
	var err error
	if k.sizes, err = parseSizes(sizes); err != nil {
		return nil, err
	}
	for _, s := range words(rtts) {
		d, err := time.ParseDuration(s)
		if err != nil && s != "0" {
			return nil, fmt.Errorf("-rtt %q: %w", s, err)
		}
		k.rtts = append(k.rtts, d)
	}
	for _, s := range words(rates) {
		if s == "0" {
			k.mbits = append(k.mbits, 0)
			continue
		}
		n, err := parseSizes(s)
		if err != nil {
			return nil, fmt.Errorf("-rate: %w", err)
		}
		k.mbits = append(k.mbits, n...)
	}
	return add(nil, k), nil
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
