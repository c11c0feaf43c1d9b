package hot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"time"
)

// Ways, as Options.How and Result.How name them.
const (
	Auto  = "auto" // also if empty: the first of the others that works
	BPF   = "bpf"
	WP    = "wp"
	Smaps = "smaps"
	Off   = "off"
)

// Check says whether how is one.
func Check(how string) bool {
	switch how {
	case "", Auto, BPF, WP, Smaps, Off:
		return true
	}
	return false
}

// Process is one of the running tree.
type Process struct {
	ID  uint32 // as the target knows it
	PID int    // as this process sees it
}

// Options of Find. The zero value works.
type Options struct {
	How   string
	Time  time.Duration // for all rounds together (default a second)
	Stall time.Duration // that clearing bits may take in all (default 400 ms)
	// Writes tells which pages are written, by Scores.Add and Round, and how many there are; nil: that way is not to be had.
	Writes func(context.Context, *Scores) (present uint64, err error)
	Log    *slog.Logger

	fail map[string]error // tests: ways that do not work here
}

// Result is what was found.
type Result struct {
	How    string // the way; Off: none
	Spans  []Span // in the order in which they should be sent
	Pages  uint64 // in Spans
	Rounds int
	Why    string // what the first ways did not work for
}

// Find looks which pages of the processes are in use. An error is the context's, or that of a way that was asked for by name.
func Find(ctx context.Context, all []Process, o Options) (Result, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Time <= 0 {
		o.Time = time.Second
	}
	if o.Stall <= 0 {
		o.Stall = 400 * time.Millisecond
	}
	ways := []string{o.How}
	switch o.How {
	case "", Auto:
		ways = []string{BPF, WP, Smaps}
	case Off:
		return Result{How: Off}, nil
	}
	var errs []error
	for _, w := range ways {
		r, err := o.find(ctx, w, all)
		if cause := context.Cause(ctx); cause != nil {
			return Result{How: Off}, cause
		}
		if err == nil {
			for i := range r.Spans {
				r.Pages += r.Spans[i].Pages()
			}
			r.How, r.Why = w, text(errs)
			return r, nil
		}
		o.Log.Info("hot pages are not to be found this way", "way", w, "why", err)
		errs = append(errs, fmt.Errorf("%s: %w", w, err))
	}
	if len(ways) == 1 {
		return Result{How: Off}, errs[0]
	}
	return Result{How: Off, Why: text(errs)}, nil
}

func text(errs []error) string {
	var all []string
	for _, e := range errs {
		all = append(all, e.Error())
	}
	return strings.Join(all, "; ")
}

var errNoWay = errors.New("there is no tracking of writes")

func (o *Options) find(ctx context.Context, way string, all []Process) (r Result, err error) {
	if err := o.fail[way]; err != nil {
		return r, err
	}
	switch way {
	case BPF:
		return o.byBPF(ctx, all)
	case WP:
		if o.Writes == nil {
			return r, errNoWay
		}
		s := NewScores()
		present, err := o.Writes(ctx, s)
		if err != nil {
			return r, err
		}
		return Result{Spans: s.written(present), Rounds: s.rounds}, nil
	case Smaps:
		return o.bySmaps(ctx, all)
	}
	return r, fmt.Errorf("no such way: %q", way)
}

// written lists what was written: without chance, since each round tells of everything that was.
func (s *Scores) written(present uint64) []Span {
	if n := s.Pages(); n == 0 || n > present/2 {
		return s.List(present)
	}
	return s.from(1)
}

// Pages is how many have a score.
func (s *Scores) Pages() (n uint64) {
	for _, b := range s.blocks {
		for _, c := range b {
			if c > 0 {
				n++
			}
		}
	}
	return n
}

func ones(m uint64) int { return bits.OnesCount64(m) }

// costly is how long one clearing may be expected to take, by perGB.
const (
	costly = 250 * time.Millisecond
	perGB  = 20 * time.Millisecond
)

var errLarge = errors.New("clearing the bits of so much memory would keep its page faults waiting")

// affordable says whether the bits of the processes can be cleared.
func affordable(all []Process) error {
	var sum uint64
	for _, p := range all {
		sum += resident(p.PID)
	}
	if d := time.Duration(float64(sum) / gigabyte * float64(perGB)); d > costly {
		return fmt.Errorf("%w: %d MB, about %d ms each time", errLarge, sum>>20, d.Milliseconds())
	}
	return nil
}

// resident is what a process has in memory; 0 if it has ended.
func resident(pid int) uint64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.ParseUint(f[1], 10, 64)
	return n * pageSize
}

// clearBits clears the accessed bits of a process.
func clearBits(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("1"), 0)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
