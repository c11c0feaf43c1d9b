package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

func someRows() (rows []row) {
	for i, s := range everybody {
		for j, mb := range []int{64, 512, 8192} {
			for run := range 3 {
				r := row{cell: cell{workload: "paced", system: s, mb: mb}, run: run + 1, values: map[string]float64{}}
				for k, c := range figureColumns {
					r.values[c] = float64(1+i+10*j+run) * float64(k+1) / 3
				}
				r.values["says_ms"] = math.NaN()
				r.speed, r.faults = []float64{1, 0, 0.25, 0.5, 1}, []float64{1, 2, 3, 20, 4000}
				rows = append(rows, r)
				r.workload, r.mb = "uniform", 512
				rows = append(rows, r)
			}
		}
	}
	return append(rows, row{cell: cell{workload: "jvm", system: "stock", mb: 512, reserveGB: 1024, rtt: 6 * time.Millisecond, mbit: 1000}, run: 1, reason: "it, \"said\"\nno | at all"})
}

// A file of rows gives back what was written, and the report is the same.
func TestRows(t *testing.T) {
	kerneltest.Leaks(t)
	a := &table{path: filepath.Join(t.TempDir(), "rows.csv")}
	a.machine.look()
	if err := a.open(); err != nil {
		t.Fatal(err)
	}
	for _, r := range someRows() {
		if err := a.add(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.file.Close(); err != nil {
		t.Fatal(err)
	}
	b := &table{path: a.path}
	if err := b.load(); err != nil {
		t.Fatal(err)
	}
	if len(b.rows) != len(a.rows) {
		t.Fatalf("%d rows of %d", len(b.rows), len(a.rows))
	}
	for i := range a.rows {
		if got, want := b.rows[i].record(), a.rows[i].record(); !slices.Equal(got, want) {
			t.Errorf("row %d: %q\nwas %q", i, got, want)
		}
	}
	for _, want := range []string{"8192 MB", "1 of 1 failed: it, \"said\" no | at all", "6ms round trip, 1000 Mbit/s"} {
		if text := b.markdown("plots"); !strings.Contains(text, want) {
			t.Errorf("the report has no %q:\n%s", want, text)
		}
	}
}

// Charts are well-formed, and none of their points lies outside.
func TestCharts(t *testing.T) {
	kerneltest.Leaks(t)
	dir := t.TempDir()
	if err := (&table{rows: someRows()}).plots(dir); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil || len(names) < 4 {
		t.Fatalf("charts: %v, %v", names, err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(strings.NewReader(string(b))); ; {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", n, err)
			}
		}
		for _, bad := range []string{"NaN", "Inf", "\"-"} {
			if strings.Contains(string(b), bad) {
				t.Errorf("%s has %s", n, bad)
			}
		}
	}
}

// The flags make the places that they name, and no place is there twice.
func TestChoose(t *testing.T) {
	cells, err := choose(nil, "lazymig,stock", "idle", "64,512", "0,6ms", "0,1000", 0)
	if err != nil || len(cells) != 16 {
		t.Errorf("%d places, %v", len(cells), err)
	}
	for _, bad := range [][5]string{{"nobody"}, {"", "nothing"}, {"", "", "0"}, {"", "", "", "x"}, {"", "", "", "", "-1"}} {
		if _, err := choose(nil, bad[0], bad[1], bad[2], bad[3], bad[4], 0); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	seen := map[cell]bool{}
	for _, c := range allCells() {
		if _, ok := systemNamed(c.system); !ok || seen[c] {
			t.Errorf("%v: twice, or no such system", c)
		}
		seen[c] = true
	}
}

// The bins of Go's side are those of load.c: each value lies in the bin whose middle is near it.
func TestHistogram(t *testing.T) {
	h := histogram{}
	for v := uint64(1); v < 1<<40; v = v*9/8 + 1 {
		if m := middle(binOf(v)); math.Abs(m-float64(v)) > float64(v)/16 {
			t.Errorf("%d is in the bin of %f", v, m)
		}
	}
	for range 99 {
		h[binOf(1000)]++
	}
	h[binOf(1_000_000)]++
	if p := h.quantile(0.5); p < 950 || p > 1050 {
		t.Errorf("median %f", p)
	}
	if p := h.quantile(0.99); p < 900_000 {
		t.Errorf("p99 %f", p)
	}
	if !math.IsNaN((histogram{}).quantile(0.5)) {
		t.Error("nothing has a median")
	}
}

// What a load says gives the time back to its speed.
func TestWayBack(t *testing.T) {
	start := time.Unix(1000, 0)
	n := &noticed{rate: map[int64]uint64{}, faults: histogram{}}
	at := func(d time.Duration) int64 { return start.Add(d).UnixNano() / int64(slot) }
	for d := -2 * time.Second; d < 5*time.Second; d += slot {
		switch {
		case d < 100*time.Millisecond:
			n.rate[at(d)] = 100
		case d < 200*time.Millisecond: // the pause
		case d < time.Second:
			n.rate[at(d)] = 60
		default:
			n.rate[at(d)] = 98
		}
	}
	n.gaps = []gap{{start.Add(-time.Second), start.Add(-999 * time.Millisecond)}, {start.Add(100 * time.Millisecond), start.Add(200 * time.Millisecond)}}
	o := &outcome{frozen: start.Add(150 * time.Millisecond), resumed: start.Add(210 * time.Millisecond), drained: start.Add(900 * time.Millisecond), bytes: 1 << 30}
	p, err := n.pause(o.frozen)
	if err != nil {
		t.Fatal(err)
	}
	r := row{values: map[string]float64{}}
	r.take(o, n, p, start)
	for figure, want := range map[string][2]float64{"pause_ms": {100, 100}, "to50_ms": {0, 0}, "to90_ms": {750, 800}, "to95_ms": {750, 810}} {
		if v := r.get(figure); v < want[0] || v > want[1] {
			t.Errorf("%s is %v, not %v", figure, v, want)
		}
	}
	if _, err := n.pause(start.Add(time.Second)); err == nil {
		t.Error("a pause where there is none")
	}
}
