package main

import (
	"context"
	_ "embed"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lazymig/lazymig/migrate"
)

// modesArg makes this program hold the modes against each other over a matrix of lines, ways to write and sizes, and what --mode auto makes of each
// cell against the best of them. Moves are rows of a CSV file: one that is there already is not made again, so that the matrix may be measured in pieces.
const modesArg = "modes"

//go:embed testdata/writer.c
var writerSource []byte

// lines between the hosts. rate, bytes a second, is what the score takes for it.
var lines = []struct {
	name, make string
	rtt        time.Duration
	rate       float64
}{
	{"loopback", "", 0, 800e6},
	{"1gbit", "tc qdisc add dev eth0 root tbf rate 1gbit burst 1m latency 50ms", 0, 118e6},
	{"6ms", "", 6 * time.Millisecond, 400e6},
}

// writers of testdata/writer.c, and how many threads they have.
var writers = map[string]int{"idle": 1, "seq": 1, "uniform": 1, "zipf": 1, "storm": 4}

// modesOfMatrix are measured in this order.
var modesOfMatrix = []string{migrate.ModePost, migrate.ModeHybrid, migrate.ModePre, migrate.ModeStop, migrate.ModeAuto}

func modesMain(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet(modesArg, flag.ContinueOnError)
	sizes := f.String("sizes", "64,512,2048", "memory `sizes` in MB")
	which := f.String("lines", "loopback,1gbit,6ms", "`lines` between the hosts")
	patterns := f.String("writes", "idle,seq,uniform,zipf,storm", "`HOW` memory is written")
	modes := f.String("modes", strings.Join(modesOfMatrix, ","), "`modes`")
	runs := f.Int("runs", 3, "moves of each kind")
	limit := f.Duration("for", time.Hour, "begin no move after this `TIME`")
	out := f.String("csv", "bin/modes.csv", "`FILE` below the project with a row for each move")
	program := f.String("lazymig", "bin/lazymig", "the program, below the project's bin")
	judge := f.Bool("judge", false, "make no moves: print the table of what the file has")
	verbose := f.Bool("v", false, "print logs of failures")
	if err := f.Parse(args); err != nil {
		return err
	}
	root, err := projectRoot()
	if err != nil {
		return err
	}
	path := filepath.Join(root, *out)
	if *judge {
		return judgeModes(os.Stdout, path)
	}
	all, err := parseSizes(*sizes)
	if err != nil {
		return err
	}
	rows, err := readMoves(path)
	if err != nil {
		return err
	}
	b, done, err := newMetered(ctx, root, *program, *verbose)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	b.writer = filepath.Join(filepath.Dir(b.workload), "writer")
	if err := compile(ctx, b.writer, watchSource, writerSource); err != nil {
		return err
	}
	began := time.Now()
	for n := range *runs {
		for _, mb := range all {
			for _, l := range lines {
				for p := range strings.SplitSeq(*patterns, ",") {
					for _, mode := range modesOfMatrix {
						m := move{line: l.name, writes: p, mb: mb, mode: mode, run: n + 1}
						if !has(strings.Split(*which, ","), l.name) || !has(strings.Split(*modes, ","), mode) || m.in(rows) {
							continue
						}
						if time.Since(began) > *limit {
							return nil
						}
						if writers[p] == 0 {
							return fmt.Errorf("nobody writes %q", p)
						}
						b.line, b.rtt, b.pattern = l.make, l.rtt, p
						o, err := b.measure(ctx, mb, moveByMode(mode))
						if err != nil {
							return fmt.Errorf("move %d MB (%s, %s) by --mode %s: %w", mb, p, l.name, mode, err)
						}
						m.take(o)
						fmt.Println(m)
						if err := m.append(path); err != nil {
							return err
						}
					}
				}
			}
		}
	}
	return judgeModes(os.Stdout, path)
}

// move is a row of the file.
type move struct {
	line, writes string
	mb           int
	mode         string
	run          int
	chosen       string  // by auto
	pauseMS      float64 // as the process saw it
	stallMS      float64 // that a writer waited for pages
	sentMB       float64
	aheadMS      float64
	drainMS      float64
	faults       float64 // that the process saw
	rate, dirty  float64 // MB a second of the line, and of pages that are written, as auto has measured them
	cpuS         float64
	load         float64 // of the machine, before
	growth       float64 // as auto has measured them, too; random: 0 or 1
	random       float64
	cpus, tripMS float64
}

var columns = []string{"line", "writes", "mb", "mode", "run", "chosen", "pause_ms", "stall_ms", "sent_mb", "ahead_ms", "drain_ms", "faults", "line_mb_s", "written_mb_s", "cpu_s", "load", "growth", "random", "cpus", "trip_ms"}

func (m *move) figures() []*float64 {
	return []*float64{&m.pauseMS, &m.stallMS, &m.sentMB, &m.aheadMS, &m.drainMS, &m.faults, &m.rate, &m.dirty, &m.cpuS, &m.load, &m.growth, &m.random, &m.cpus, &m.tripMS}
}

func (m move) String() string {
	s := fmt.Sprintf("%-8s %-7s %5d MB  %-6s", m.line, m.writes, m.mb, m.mode)
	if m.chosen != "" {
		s += fmt.Sprintf(" (%s: %.0f of %.0f MB/s)", m.chosen, m.dirty, m.rate)
	}
	return s + fmt.Sprintf("  pause %.0f ms, stalls %.0f ms (%.0f), %.0f MB sent, ahead %.0f ms, drain %.0f ms", m.pauseMS, m.stallMS, m.faults, m.sentMB, m.aheadMS, m.drainMS)
}

// in says whether the move has been made.
func (m move) in(rows []move) bool {
	for _, r := range rows {
		if r.line == m.line && r.writes == m.writes && r.mb == m.mb && r.mode == m.mode && r.run == m.run {
			return true
		}
	}
	return false
}

func (m *move) take(o *outcome) {
	m.pauseMS, m.stallMS, m.faults = o.pauseMS, sum(o.faultUS)/1000/float64(writers[m.writes]), float64(len(o.faultUS))
	m.sentMB, m.aheadMS, m.drainMS, m.cpuS = float64(o.sent)/1e6, o.aheadMS, float64(o.drained.Sub(o.resumed).Microseconds())/1000, o.cpuSeconds
	m.load, _ = strconv.ParseFloat(loadAverage(), 64)
	if o.chosen != nil {
		m.chosen = o.chosen.Mode
		if l := o.chosen.Measured; l != nil {
			m.rate, m.dirty, m.growth, m.cpus, m.tripMS = float64(l.Line)/1e6, float64(l.Written)/1e6, l.Growth, l.CPUs, l.TripMS
			if l.Random {
				m.random = 1
			}
		}
	}
}

// append adds the row to the file.
func (m *move) append(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("write moves: %w", err)
	}
	defer f.Close()
	w := csv.NewWriter(f)
	if at, err := f.Seek(0, io.SeekEnd); err == nil && at == 0 {
		_ = w.Write(columns) // Flush tells
	}
	row := []string{m.line, m.writes, strconv.Itoa(m.mb), m.mode, strconv.Itoa(m.run), m.chosen}
	for _, v := range m.figures() {
		row = append(row, strconv.FormatFloat(*v, 'f', 2, 64))
	}
	_ = w.Write(row) // as above
	w.Flush()
	return errors.Join(w.Error(), f.Sync())
}

// readMoves reads what has been made already.
func readMoves(path string) ([]move, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read moves: %w", err)
	}
	defer f.Close()
	all, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read moves: %w", err)
	}
	var rows []move
	for i, r := range all {
		if i == 0 {
			continue
		}
		m := move{line: r[0], writes: r[1], mode: r[3], chosen: r[5]}
		var errs []error
		m.mb, err = strconv.Atoi(r[2])
		errs = append(errs, err)
		m.run, err = strconv.Atoi(r[4])
		errs = append(errs, err)
		for k, v := range m.figures() {
			*v, err = strconv.ParseFloat(r[6+k], 64)
			errs = append(errs, err)
		}
		if err := errors.Join(errs...); err != nil {
			return nil, fmt.Errorf("read row %d of %s: %w", i+1, path, err)
		}
		rows = append(rows, m)
	}
	return rows, nil
}
