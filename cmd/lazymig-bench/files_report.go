package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const filesTitle = "# Files: still at the source, here, detached"

// measured is one cell of the table.
type measured struct {
	system string
	rtt    time.Duration
	load   string
	again  bool
}

type filesReport struct {
	trips   []time.Duration
	runs    int
	machine machine
	seconds map[measured][]float64
	sums    map[string]map[uint32][]measured
}

func (r *filesReport) add(m measured, got *loadResult) {
	if r.seconds == nil {
		r.seconds, r.sums = map[measured][]float64{}, map[string]map[uint32][]measured{}
	}
	r.seconds[m] = append(r.seconds[m], got.Seconds)
	if r.sums[m.load] == nil {
		r.sums[m.load] = map[uint32][]measured{}
	}
	r.sums[m.load][got.Sum] = append(r.sums[m.load][got.Sum], m)
}

// same checks that all have seen the same.
func (r *filesReport) same() error {
	var err error
	for load, sums := range r.sums {
		if len(sums) > 1 {
			err = errors.Join(err, fmt.Errorf("load %s has seen different files: %v", load, sums))
		}
	}
	return err
}

// figure is the median as the table has it; NaN if nothing was measured.
func (r *filesReport) figure(m measured) float64 {
	s := r.seconds[m]
	if len(s) == 0 {
		return math.NaN()
	}
	s = append([]float64(nil), s...)
	sortFloats(s)
	l := fileLoads[indexLoad(m.load)]
	if l.less {
		return quantile(s, 0.5) / l.count
	}
	return l.count / quantile(s, 0.5)
}

// times is how many times one is faster than another.
func (r *filesReport) times(m measured, other measured) float64 {
	a, b := r.figure(m), r.figure(other)
	if fileLoads[indexLoad(m.load)].less {
		return b / a
	}
	return a / b
}

// on is the same cell of another system.
func (m measured) on(system string) measured {
	m.system = system
	return m
}

func (r *filesReport) markdown() string {
	var b strings.Builder
	m := &r.machine
	fmt.Fprintf(&b, filesTitle+"\n\nMade by `make bench-files`: medians of %d mounts each (two namespaces of one machine: %d × %s, Linux %s;\n"+
		"load %s before, %s after). \"lazyfs\": the source's files seen from the target, over a line with a round trip and no other limit. \"local\": all that the load uses has come, and the tree is\n"+
		"still on FUSE, which has none of the big files' pages at first; \"detached\": the same without it. sshfs: through OpenSSH's sshd, kernel_cache, aes128-gcm. NFS: this kernel has no\n"+
		"client for it. \"again\": the same once more, when the target's kernel knows the files. ÷ is how many times lazyfs is faster than sshfs, and local and detached than native. Figures one by one: [files.csv](files.csv).\n",
		r.runs, m.cpus, m.cpu, m.kernel, m.loadBefore, m.loadAfter)
	for _, again := range []bool{false, true} {
		title := "First time"
		if again {
			title = "Again"
		}
		fmt.Fprintf(&b, "\n## %s\n\n| | native | detached | ÷ |", title)
		for _, rtt := range r.trips {
			fmt.Fprintf(&b, " %s: sshfs | lazyfs | ÷ | local | ÷ |", trip(rtt))
		}
		b.WriteString("\n|---|---|---|---|" + strings.Repeat("---|---|---|---|---|", len(r.trips)) + "\n")
		for _, l := range fileLoads {
			n := measured{"native", r.trips[0], l.name, again}
			d := n.on(detachedHere)
			fmt.Fprintf(&b, "| %s, %s | %s | %s | %s |", l.title, l.unit, formatted("%.4g", r.figure(n)), formatted("%.4g", r.figure(d)), formatted("%.2f", r.times(d, n)))
			for _, rtt := range r.trips {
				s := measured{"sshfs", rtt, l.name, again}
				z, h := s.on(forwarded), s.on(localHere)
				fmt.Fprintf(&b, " %s | %s | %s | %s | %s |", formatted("%.4g", r.figure(s)), formatted("%.4g", r.figure(z)), formatted("%.1f", r.times(z, s)), formatted("%.4g", r.figure(h)), formatted("%.2f", r.times(h, n)))
			}
			b.WriteString("\n")
		}
	}
	b.WriteString(r.worse())
	return b.String()
}

// worse says where the other file system is the better one.
func (r *filesReport) worse() string {
	var all []string
	for _, l := range fileLoads {
		for _, again := range []bool{false, true} {
			for _, rtt := range r.trips {
				s := measured{"sshfs", rtt, l.name, again}
				if x := r.times(s.on(forwarded), s); x < 0.95 {
					all = append(all, fmt.Sprintf("%s, %s%s: %.2f ×", l.title, trip(rtt), map[bool]string{true: ", again"}[again], x))
				}
			}
		}
	}
	if len(all) == 0 {
		return ""
	}
	return "\nWhere sshfs is better than lazyfs: " + strings.Join(all, "; ") + ".\n"
}

// writeCSV writes each measurement.
func (r *filesReport) writeCSV(path string) error {
	var b strings.Builder
	b.WriteString("system,rtt_ms,load,again,run,seconds\n")
	all := slices.Collect(maps.Keys(r.seconds))
	slices.SortFunc(all, func(a, b measured) int {
		return cmp.Or(cmp.Compare(indexLoad(a.load), indexLoad(b.load)), cmp.Compare(a.rtt, b.rtt), cmp.Compare(a.system, b.system), cmp.Compare(fmt.Sprint(a.again), fmt.Sprint(b.again)))
	})
	for _, m := range all {
		for i, s := range r.seconds[m] {
			fmt.Fprintf(&b, "%s,%d,%s,%v,%d,%.6f\n", m.system, m.rtt.Milliseconds(), m.load, m.again, i+1, s)
		}
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil { //nolint:gosec // a report, for everybody
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}

func trip(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }

// lastLine is what machines read: how many times lazyfs is faster than sshfs, and than native when all is known.
func (r *filesReport) lastLine(w io.Writer) error {
	over := map[string]map[string]any{}
	local := map[string]any{}
	for _, l := range fileLoads {
		for _, rtt := range r.trips {
			s := measured{"sshfs", rtt, l.name, false}
			if over[l.name] == nil {
				over[l.name] = map[string]any{}
			}
			over[l.name][rtt.String()] = number(r.times(s.on(forwarded), s))
		}
		n := measured{"native", r.trips[0], l.name, true}
		local[l.name] = number(r.times(n.on(localHere), n))
	}
	line, err := json.Marshal(map[string]any{"times_sshfs": over, "local_again_times_native": local})
	if err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", line)
	return err
}

// writeSection puts a section, which begins with its title, in the place of the one before in a file of several.
func writeSection(path, title, text string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read report: %w", err)
	}
	var keep strings.Builder
	inside := false
	for line := range strings.Lines(string(old)) {
		if strings.HasPrefix(line, "# ") {
			inside = strings.TrimSpace(line) == title
		}
		if !inside {
			keep.WriteString(line)
		}
	}
	text = strings.TrimRight(text, "\n") + "\n"
	if before := strings.TrimRight(keep.String(), "\n"); before != "" {
		text = before + "\n\n" + text
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
