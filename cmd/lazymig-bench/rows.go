package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// row is one measurement. In the file it is one line: what was measured, a column for each figure, and two with lists.
type row struct {
	cell
	run    int
	reason string // why there are no figures
	values map[string]float64
	speed  []float64 // from 0.5 s before the pause on, in steps of speedStep, of what it was before the move
	faults []float64 // µs, at faultQuantiles
}

// figureColumns are the figures of a row.
var figureColumns = []string{
	"pause_ms", "says_ms", "drain_ms", "drain_mb_s", "ahead_ms", "faults", "stall_ms", "fault_p50_us", "fault_p99_us", "ops_before", "to50_ms", "to90_ms", "to95_ms",
	"sent_ratio", "cpu_source_s_gb", "cpu_target_s_gb", "memory_source_mb", "memory_target_mb", "took_s",
}

var faultQuantiles = []float64{0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1}

var keyColumns = []string{"system", "workload", "mb", "reserve_gb", "rtt_ms", "mbit", "run", "reason"}

func header() []string {
	h := append(append([]string{}, keyColumns...), figureColumns...)
	return append(h, "speed", "faults_us")
}

func (r *row) get(figure string) float64 {
	if v, ok := r.values[figure]; ok {
		return v
	}
	return math.NaN()
}

func (r *row) String() string {
	if r.reason != "" {
		return fmt.Sprintf("%s: FAILED: %s", r.cell, r.reason)
	}
	var s strings.Builder
	s.WriteString(r.cell.String() + ":")
	for _, c := range figureColumns {
		if v := r.get(c); !math.IsNaN(v) {
			fmt.Fprintf(&s, " %s %.4g", c, v)
		}
	}
	return s.String()
}

func (r *row) record() []string {
	reason := strings.Join(strings.Fields(r.reason), " ")
	if len(reason) > 300 {
		reason = reason[:300] + "…"
	}
	out := []string{r.system, r.workload, strconv.Itoa(r.mb), strconv.Itoa(r.reserveGB), figure(float64(r.rtt.Microseconds()) / 1000), strconv.Itoa(r.mbit), strconv.Itoa(r.run), reason}
	for _, c := range figureColumns {
		out = append(out, figure(r.get(c)))
	}
	return append(out, figures2(r.speed), figures2(r.faults))
}

func figure(f float64) string {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return ""
	}
	return strconv.FormatFloat(f, 'g', 5, 64)
}

func figures2(l []float64) string {
	var s []string
	for _, f := range l {
		s = append(s, strconv.FormatFloat(f, 'g', 3, 64))
	}
	return strings.Join(s, " ")
}

func parseRow(rec []string) (r row, err error) {
	if len(rec) != len(keyColumns)+len(figureColumns)+2 {
		return r, fmt.Errorf("a row of %d columns: %w", len(rec), csv.ErrFieldCount)
	}
	num := func(s string) float64 {
		if s == "" {
			return math.NaN()
		}
		f, e := strconv.ParseFloat(s, 64)
		err = errors.Join(err, e)
		return f
	}
	list := func(s string) (l []float64) {
		for w := range strings.FieldsSeq(s) {
			l = append(l, num(w))
		}
		return l
	}
	r.system, r.workload, r.reason = rec[0], rec[1], rec[7]
	r.mb, r.reserveGB, r.mbit, r.run = int(num(rec[2])), int(num(rec[3])), int(num(rec[5])), int(num(rec[6]))
	r.rtt = time.Duration(num(rec[4]) * float64(time.Millisecond))
	r.values = map[string]float64{}
	for i, c := range figureColumns {
		r.values[c] = num(rec[len(keyColumns)+i])
	}
	r.speed, r.faults = list(rec[len(rec)-2]), list(rec[len(rec)-1])
	return r, err
}

// table is all rows, and the file that they are in.
type table struct {
	rows    []row
	machine machine
	path    string
	file    *os.File
}

func (t *table) load() error {
	f, err := os.Open(t.path)
	if err != nil {
		return fmt.Errorf("read rows: %w", err)
	}
	defer f.Close()
	c := csv.NewReader(f)
	c.FieldsPerRecord = -1
	for n := 0; ; n++ {
		rec, err := c.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && n == 0 {
			continue // the header
		}
		var r row
		if err == nil {
			if strings.HasPrefix(rec[0], machineRow) {
				t.machine.parse(rec)
				continue
			}
			r, err = parseRow(rec)
		}
		if err != nil {
			return fmt.Errorf("read rows of %s: %w", t.path, err)
		}
		t.rows = append(t.rows, r)
	}
}

// open begins the file, with the rows that there are.
func (t *table) open() (err error) {
	if err = os.MkdirAll(filepath.Dir(t.path), 0o755); err == nil {
		t.file, err = os.Create(t.path)
	}
	if err == nil {
		err = t.write(header())
	}
	if err == nil {
		err = t.write(t.machine.record())
	}
	for i := range t.rows {
		if err == nil {
			err = t.write(t.rows[i].record())
		}
	}
	if err != nil {
		return fmt.Errorf("begin rows: %w", err)
	}
	return nil
}

func (t *table) write(rec []string) error {
	w := csv.NewWriter(t.file)
	if err := w.Write(rec); err != nil {
		return err
	}
	w.Flush()
	return w.Error()
}

func (t *table) add(r row) error {
	t.rows = append(t.rows, r)
	if err := t.write(r.record()); err != nil {
		return fmt.Errorf("write row: %w", err)
	}
	return nil
}
