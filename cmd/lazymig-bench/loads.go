package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lazymig/lazymig/lab"
)

//go:embed testdata/load.c
var loadSource []byte

//go:embed testdata/Load.java
var javaSource []byte

// A load is a program that is moved and notices what that does to it: memory is touched by testdata/load.c in several ways and by a JVM; Redis is
// noticed by its clients.
type load interface {
	// start returns when it is at work.
	start(ctx context.Context, b *bench, l *lab.Lab, c *cell) (*lab.Proc, error)
	// end ends it where it runs now, and tells what it has noticed. Wrong bytes are an error.
	end(ctx context.Context, l *lab.Lab, o *outcome) (*noticed, error)
}

// touching are the kinds of load.c.
var touching = []string{"idle", "sequential", "uniform", "zipf", "writes", "storm", "paced", "half"}

// workloads are all loads.
var workloads = append(slices.Clone(touching), "redis", "jvm")

func newLoad(name string) (load, error) {
	switch {
	case slices.Contains(touching, name):
		return &programLoad{}, nil
	case name == "jvm":
		return &programLoad{java: true}, nil
	case name == "redis":
		return &redisLoad{}, nil
	}
	return nil, fmt.Errorf("workload %q: %s", name, strings.Join(workloads, ", "))
}

// slot is how long operations are counted together.
const slot = 10 * time.Millisecond

// noticed is what a load says.
type noticed struct {
	gaps   []gap // when it did not run
	faults histogram
	stall  time.Duration
	rate   map[int64]uint64 // operations, by time.UnixNano / slot
}

type gap struct{ from, to time.Time }

// pause is the gap that at lies in.
func (n *noticed) pause(at time.Time) (gap, error) {
	for _, g := range n.gaps {
		if !g.from.After(at) && !g.to.Before(at) {
			return g, nil
		}
	}
	return gap{}, fmt.Errorf("the workload saw no pause at %v", at)
}

// histogram counts values on the logarithmic scale of load.c: 16 bins to each power of two.
type histogram map[int]uint64

func binOf(v uint64) int {
	if v < 16 {
		return int(v)
	}
	e := 63
	for v>>e == 0 {
		e--
	}
	return (e-3)*16 + int(v>>(e-4)&15)
}

// middle of a bin.
func middle(bin int) float64 {
	if bin < 16 {
		return float64(bin)
	}
	e := bin/16 + 3
	return (float64(16+bin%16) + 0.5) * float64(uint64(1)<<(e-4))
}

func (h histogram) count() (n uint64) {
	for _, c := range h {
		n += c
	}
	return n
}

// quantile is NaN if there is nothing.
func (h histogram) quantile(q float64) float64 {
	var bins []int
	for b := range h {
		bins = append(bins, b)
	}
	slices.Sort(bins)
	left := uint64(q * float64(h.count()))
	for i, b := range bins {
		if h[b] > left || i == len(bins)-1 {
			return middle(b)
		}
		left -= h[b]
	}
	return quantile(nil, q)
}

// parse reads what load.c has written.
func (n *noticed) parse(text []byte) error {
	n.faults, n.rate = histogram{}, map[int64]uint64{}
	sc := bufio.NewScanner(bytes.NewReader(text))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		var v [2]int64
		for i := range min(len(f)-1, 2) {
			var err error
			if v[i], err = strconv.ParseInt(f[i+1], 10, 64); err != nil {
				return fmt.Errorf("read result: %w", err)
			}
		}
		switch {
		case len(f) == 3 && f[0] == "gap":
			n.gaps = append(n.gaps, gap{time.UnixMicro(v[0] - v[1]), time.UnixMicro(v[0])})
		case len(f) == 3 && f[0] == "fault":
			n.faults[int(v[0])] += uint64(v[1])
		case len(f) == 3 && f[0] == "rate":
			n.rate[v[0]] += uint64(v[1])
		case len(f) == 2 && f[0] == "stall":
			n.stall = time.Duration(v[0])
		case len(f) == 1 && f[0] == "bad":
			return errWrongBytes
		}
	}
	return sc.Err()
}

// programLoad is one that watches itself.
type programLoad struct{ java bool }

func (p *programLoad) start(ctx context.Context, b *bench, l *lab.Lab, c *cell) (*lab.Proc, error) {
	args := []string{b.load, c.workload, strconv.Itoa(c.mb), strconv.Itoa(c.reserveGB), readyFile, resultFile}
	if p.java {
		if _, err := exec.LookPath("java"); err != nil {
			return nil, fmt.Errorf("workload jvm: %w", err)
		}
		heap := fmt.Sprintf("-Xmx%dm", c.mb+c.mb/3+64)
		args = []string{"java", heap, "-XX:+UseSerialGC", "-XX:-UsePerfData", b.load + ".java", strconv.Itoa(c.mb), readyFile, resultFile}
	}
	proc, err := l.A.Spawn(lab.Spawn{Args: args})
	if err != nil {
		return nil, err
	}
	if err := waitForFile(ctx, l.A.Path(readyFile), "ready\n", proc.Done()); err != nil {
		proc.Close()
		return nil, fmt.Errorf("wait for the workload: %w", err)
	}
	return proc, nil
}

func (p *programLoad) end(ctx context.Context, l *lab.Lab, o *outcome) (*noticed, error) {
	if err := sh(ctx, l.B, "kill -TERM "+strconv.Itoa(o.pid)); err != nil {
		return nil, fmt.Errorf("end the workload: %w", err)
	}
	path := o.resultOn.Path(resultFile)
	if err := waitForFile(ctx, path, "ok\n", nil); err != nil {
		return nil, fmt.Errorf("result of the workload: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("result of the workload: %w", err)
	}
	n := &noticed{}
	return n, n.parse(text)
}

// compileLoads puts both programs to where both hosts see them.
func compileLoads(ctx context.Context, to string) error {
	if err := compile(ctx, to, loadSource); err != nil {
		return err
	}
	dir, name := filepath.Split(to)
	return os.WriteFile(filepath.Join(dir, name+".java"), javaSource, 0o644)
}
