package main

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Tables and plots of the matrix, from its rows.

// group is what the systems of one table have in common.
type group cell

func (r *row) group() group { return r.cell.group() }

func (c cell) group() group {
	c.system = ""
	return group(c)
}

func (g group) title() string {
	s := fmt.Sprintf("%s, %d MB", g.workload, g.mb)
	if g.reserveGB > 0 {
		s += fmt.Sprintf(" of %d GB reserved", g.reserveGB)
	}
	return s + cell(g).lineText()
}

// groups in the order of the report.
func (t *table) groups() (out []group) {
	for i := range t.rows {
		if g := t.rows[i].group(); !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	slices.SortStableFunc(out, func(a, b group) int {
		return cmp.Or(cmp.Compare(a.rtt, b.rtt), cmp.Compare(a.mbit, b.mbit), cmp.Compare(a.reserveGB, b.reserveGB),
			cmp.Compare(slices.Index(workloads, a.workload), slices.Index(workloads, b.workload)), cmp.Compare(a.mb, b.mb))
	})
	return out
}

// at is the rows of a system in a group.
func (t *table) at(g group, system string) (out []*row) {
	for i := range t.rows {
		if r := &t.rows[i]; r.system == system && r.group() == g {
			out = append(out, r)
		}
	}
	return out
}

// spread is the median of a figure, its least and its most.
type spread struct {
	median, least, most float64
	n                   int
}

func (t *table) spread(g group, system, figure string) spread {
	var f []float64
	for _, r := range t.at(g, system) {
		if v := r.get(figure); !math.IsNaN(v) {
			f = append(f, v)
		}
	}
	if len(f) == 0 {
		return spread{median: math.NaN()}
	}
	sortFloats(f)
	return spread{median: quantile(f, 0.5), least: f[0], most: f[len(f)-1], n: len(f)}
}

func (s spread) String() string {
	if math.IsNaN(s.median) {
		return "–"
	}
	if s.n < 2 {
		return short(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", short(s.median), short(s.least), short(s.most))
}

// short has three digits, or what is before the point.
func short(f float64) string {
	switch a := math.Abs(f); {
	case math.IsNaN(f):
		return "–"
	case a >= 100:
		return fmt.Sprintf("%.0f", f)
	case a >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

// shown are the columns of a table. Where more is better a ratio of lazymig to stock above 1 is good.
var shown = []struct {
	title   string
	figures []string // more than one: medians, with slashes
	ratio   bool     // to stock's, beside it
}{
	{"pause, ms", []string{"pause_ms"}, true},
	{"drain, MB/s", []string{"drain_mb_s"}, true},
	{"stall, ms", []string{"stall_ms"}, true},
	{"fault p50 / p99, µs", []string{"fault_p50_us", "fault_p99_us"}, false},
	{"back to 50 / 90 / 95 %, ms", []string{"to50_ms", "to90_ms", "to95_ms"}, true},
	{"sent / memory", []string{"sent_ratio"}, false},
	{"CPU source / target, s/GB", []string{"cpu_source_s_gb", "cpu_target_s_gb"}, false},
	{"memory source / target, MB", []string{"memory_source_mb", "memory_target_mb"}, false},
}

func (t *table) markdown(plots string) string {
	var b strings.Builder
	m := &t.machine
	fmt.Fprintf(&b, "%s\n\nMade by `make bench`", movesTitle)
	if m.args != "" {
		fmt.Fprintf(&b, " (`lazymig-bench %s`)", m.args)
	}
	fmt.Fprintf(&b, ", on %d × %s, %d GB, Linux %s, load %s before; both hosts are namespaces of one machine, so both ends share its CPUs. All systems in one run, taking turns.\n"+
		"Medians, and (least–most) where a place was measured more than once. The rows are in bench.csv.\n\n", m.cpus, m.cpu, m.memory>>30, m.kernel, m.loadBefore)
	b.WriteString(matrixNotes)
	if plots != "" {
		b.WriteString("\nPlots, and what follows from them: [tradeoffs.md](tradeoffs.md).\n")
	}
	t.bySize(&b)
	for _, g := range t.groups() {
		t.groupTable(&b, g)
	}
	return b.String()
}

const matrixNotes = `The load notices all itself (testdata/load.c): *pause* is the gap in its work around the freeze, *stall* the sum of all waits for pages over its threads,
*fault* one such wait; for Redis what its clients wait for answers of more than 1 ms after the move, for the JVM all operations of more than 20 µs. *back to* is the time from the end of the pause until it does
that share of its work before, in a window of 0.1 s. *sent* is what the network device counted; *CPU* is what the movers on each host took, *memory* what each host held beyond the moved process, at worst (images in
a tmpfs, copies, buffers of sockets). × is the ratio to CRIU with lazy pages in the same place.

idle: nothing is touched. sequential, uniform, zipf (0.99): one thread, a page each 2 µs. writes: two threads write all the time. storm: four threads read all the time. paced: a page each 0.5 ms. half: paced, half of
each page can be compressed away. Peers are CRIU 4.2 with warm caches, raised pipe limits, no encryption, and images that reach the other host in no time (tmpfs to tmpfs); lazymig uses TLS 1.3 for all. A round
trip is made by a process that holds back what it carries, for both; what it takes of the CPU is nobody's in the table but slows all down.
`

// bySize is the pause over sizes.
func (t *table) bySize(b *strings.Builder) {
	for _, w := range workloads {
		var sizes []int
		for _, g := range t.groups() {
			if g == (group{workload: w, mb: g.mb}) {
				sizes = append(sizes, g.mb)
			}
		}
		if len(sizes) < 2 {
			continue
		}
		fmt.Fprintf(b, "\n## Pause by memory, %s, ms\n\n| |", w)
		for _, mb := range sizes {
			fmt.Fprintf(b, " %d MB |", mb)
		}
		b.WriteString(" most / least |\n|---|" + strings.Repeat("---|", len(sizes)+1) + "\n")
		for _, s := range systems {
			line, first, last, any := "", math.NaN(), math.NaN(), false
			for i, mb := range sizes {
				p := t.spread(group{workload: w, mb: mb}, s.name, "pause_ms")
				line += " " + p.String() + " |"
				any = any || p.n > 0
				if i == 0 {
					first = p.median
				}
				last = p.median
			}
			if any {
				fmt.Fprintf(b, "| %s |%s %s |\n", s.what, line, short(last/first))
			}
		}
	}
}

func (t *table) groupTable(b *strings.Builder, g group) {
	fmt.Fprintf(b, "\n## %s\n\n| |", strings.ToUpper(g.title()[:1])+g.title()[1:])
	for _, c := range shown {
		fmt.Fprintf(b, " %s |", c.title)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(shown)) + "\n")
	var failed []string
	line := lineOf(cell(g)).group()
	for _, s := range systems {
		rows := t.at(g, s.name)
		if len(rows) == 0 {
			continue
		}
		good, reason := 0, ""
		for _, r := range rows {
			if r.reason == "" {
				good++
			} else {
				reason = r.reason
			}
		}
		if reason != "" {
			if len(reason) > 200 {
				reason = reason[:200] + "…"
			}
			failed = append(failed, fmt.Sprintf("%s: %d of %d failed: %s", s.what, len(rows)-good, len(rows), strings.Join(strings.Fields(reason), " ")))
		}
		if good == 0 {
			continue
		}
		fmt.Fprintf(b, "| %s |", s.what)
		for _, c := range shown {
			var parts []string
			for _, f := range c.figures {
				sp := t.spread(g, s.name, f)
				if len(c.figures) == 1 {
					parts = append(parts, sp.String())
				} else {
					parts = append(parts, short(sp.median))
				}
			}
			text := strings.Join(parts, " / ")
			last := c.figures[len(c.figures)-1]
			sp1 := t.spread(g, s.name, last).median
			if x := sp1 / t.spread(g, "stock", last).median; c.ratio && s.name != "stock" && !math.IsNaN(x) && !math.IsInf(x, 0) {
				text += " ×" + short(x)
			}
			if bare := t.spread(line, lineSystem, last).median; last == "drain_mb_s" && !math.IsNaN(bare) && sp1 > 0 && s.name != lineSystem {
				text += fmt.Sprintf(", %.0f %% of TLS", 100*sp1/bare)
			}
			fmt.Fprintf(b, " %s |", text)
		}
		b.WriteString("\n")
	}
	if len(failed) > 0 {
		b.WriteString("\n")
	}
	for _, f := range failed {
		fmt.Fprintf(b, "- %s\n", f)
	}
}

// publish writes report and plots.
func (t *table) publish(root, out, plots string) error {
	text := t.markdown(plots)
	fmt.Println("\n" + text)
	if plots != "" {
		if err := t.plots(filepath.Join(root, plots)); err != nil {
			return err
		}
	}
	if out == "" {
		return nil
	}
	return writeSection(filepath.Join(root, out), movesTitle, text)
}

// plots writes each plot that there are rows for.
func (t *table) plots(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make plots: %w", err)
	}
	for name, p := range t.charts() {
		if len(p.lines) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name+".svg"), []byte(p.svg()), 0o644); err != nil {
			return fmt.Errorf("write plot: %w", err)
		}
	}
	return nil
}
