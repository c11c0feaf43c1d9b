package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lazymig/lazymig/lab"
	"github.com/lazymig/lazymig/migrate"
)

//go:embed testdata/workload.c
var workloadSource []byte

//go:embed testdata/watch.h
var watchSource []byte // stands before it, and before writer.c

const (
	readyFile  = "/srv/ready"
	resultFile = "/srv/result"
	patience   = 5 * time.Minute // ends a hang
)

// compile makes a program of C sources that stand one after the other.
func compile(ctx context.Context, to string, sources ...[]byte) error {
	cmd := exec.CommandContext(ctx, "gcc", "-O2", "-pthread", "-x", "c", "-", "-o", to, "-lm")
	cmd.Stdin = bytes.NewReader(slices.Concat(sources...))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile %s: %w\n%s", filepath.Base(to), err, out)
	}
	return nil
}

// process is a running workload.
type process struct {
	mb  int
	pid int // in host A
}

// outcome is one move. Times are by the machine's clock, which both hosts share.
type outcome struct {
	resumed time.Time // the mover says that it runs on B
	frozen  time.Time // a moment at which it surely did not run
	drained time.Time
	bytes   uint64
	// What lazymig says of itself; zero for the others.
	downtimeMS, dumpMS, transferMS, restoreMS, grantMS float64
	faultP50, faultP99                                 float64
	aheadMS                                            float64
	sent                                               uint64
	done, chosen                                       *migrate.Event // as it told them; chosen: by --mode auto
	// resultOn is the host whose file system the workload writes to.
	resultOn *lab.Host
	pid      int          // in B
	end      func() error // ends what the move has left running; nil: nothing

	// By the workload.
	pauseMS, longestMS float64
	faultUS            []float64 // sorted
	cpuSeconds         float64
}

func (o *outcome) drainMBs() float64 {
	d := o.drained.Sub(o.resumed).Seconds()
	if d <= 0 {
		return 0
	}
	return float64(o.bytes) / 1e6 / d
}

func (o *outcome) String() string {
	s := fmt.Sprintf("pause %.1f ms, CPU %.2f s", o.pauseMS, o.cpuSeconds)
	if len(o.faultUS) > 0 {
		s += fmt.Sprintf(", drain %.0f MB/s (%.0f ms), %d faults p50 %.0f µs p99 %.0f µs", o.drainMBs(),
			float64(o.drained.Sub(o.resumed).Microseconds())/1000, len(o.faultUS), quantile(o.faultUS, 0.5), quantile(o.faultUS, 0.99))
	}
	if o.downtimeMS > 0 {
		s += fmt.Sprintf("; says down %.1f (dump %.1f, transfer %.1f, restore %.1f, grant %.1f), p50 %.0f µs p99 %.0f µs",
			o.downtimeMS, o.dumpMS, o.transferMS, o.restoreMS, o.grantMS, o.faultP50, o.faultP99)
	}
	return s
}

// measure makes a lab, starts the workload on A, moves it to B and takes its result. Memory is warmed before.
func (b *bench) measure(ctx context.Context, mb int, move func(*bench, context.Context, *lab.Lab, *process) (*outcome, error)) (_ *outcome, err error) {
	if err := warmMemory(ctx, mb); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l, p, err := b.workloadOnA(ctx, mb)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	defer p.Close()
	before, err := b.cpu.seconds()
	if err != nil {
		return nil, err
	}
	o, err := move(b, ctx, l, &process{mb: mb, pid: p.Pid})
	if err != nil {
		return nil, err
	}
	after, err := b.cpu.seconds()
	if err != nil {
		return nil, err
	}
	o.cpuSeconds = after - before
	if out, err := l.B.Command(ctx, "/bin/kill", "-TERM", strconv.Itoa(o.pid)).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("end the workload: %w: %s", err, out)
	}
	if err := waitForFile(ctx, o.resultOn.Path(resultFile), "ok\n", nil); err != nil {
		return nil, fmt.Errorf("result of the workload: %w", err)
	}
	if err := o.take(o.resultOn.Path(resultFile)); err != nil || o.end == nil {
		return o, err
	}
	rctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if left, err := l.Remains(rctx); err != nil || left != "" {
		return nil, errors.Join(err, fmt.Errorf("left behind: %s", left))
	}
	return o, o.end()
}

// workloadOnA makes a lab with the workload on its host A.
func (b *bench) workloadOnA(ctx context.Context, mb int) (*lab.Lab, *lab.Proc, error) {
	l, err := lab.Up(ctx, lab.Options{Self: b.self, Share: b.share})
	if err != nil {
		return nil, nil, err
	}
	if b.line != "" {
		if out, err := l.A.Command(ctx, "/bin/sh", "-c", b.line).CombinedOutput(); err != nil {
			return nil, nil, errors.Join(said("make the line narrow", err, out), l.Down())
		}
	}
	argv := []string{b.workload, strconv.Itoa(mb), strconv.Itoa(int(b.gap.Microseconds()))}
	if b.pattern != "" {
		argv = []string{b.writer, b.pattern, strconv.Itoa(mb)}
	}
	p, err := l.A.Spawn(lab.Spawn{Args: append(argv, readyFile, resultFile)})
	if err != nil {
		return nil, nil, errors.Join(err, l.Down())
	}
	if err := waitForFile(ctx, l.A.Path(readyFile), "ready\n", p.Done()); err != nil {
		p.Close()
		return nil, nil, errors.Join(fmt.Errorf("wait for the workload: %w", err), l.Down())
	}
	return l, p, nil
}

var errWrongBytes = errors.New("the workload found wrong bytes")

// waitForFile waits until the file ends with the line.
func waitForFile(ctx context.Context, path, line string, gone <-chan struct{}) error {
	for {
		b, err := os.ReadFile(path)
		switch {
		case bytes.HasSuffix(b, []byte("bad\n")):
			return errWrongBytes
		case bytes.HasSuffix(b, []byte(line)):
			return nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
		select {
		case <-gone:
			return errors.New("the process has ended")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// take reads what the workload has seen.
func (o *outcome) take(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read result: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 3 && f[0] == "gap":
			end, err1 := strconv.ParseInt(f[1], 10, 64)
			us, err2 := strconv.ParseInt(f[2], 10, 64)
			if err := errors.Join(err1, err2); err != nil {
				return fmt.Errorf("read result: %w", err)
			}
			ms := float64(us) / 1000
			o.longestMS = max(o.longestMS, ms)
			if at := o.frozen.UnixMicro(); end-us <= at && at <= end {
				o.pauseMS = ms
			}
		case len(f) == 2 && f[0] == "fault":
			ns, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return fmt.Errorf("read result: %w", err)
			}
			o.faultUS = append(o.faultUS, ns/1000)
		}
	}
	if o.pauseMS == 0 {
		return fmt.Errorf("read result: no pause at %v", o.frozen)
	}
	sortFloats(o.faultUS)
	return nil
}

// copyImages copies a directory of images from A to B, logs left out.
func copyImages(from, to string) error {
	ents, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("copy images: %w", err)
	}
	for _, e := range ents {
		if filepath.Ext(e.Name()) != ".img" {
			continue
		}
		if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return fmt.Errorf("copy images: %w", err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	return errors.Join(err, out.Close())
}
