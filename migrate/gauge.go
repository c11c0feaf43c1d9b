package migrate

import (
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lazymig/lazymig/ahead"
)

// What `migrate --mode auto` and `check --pid --to` measure alike: how fast a tree writes pages, how much CPU it takes, and what the line carries. The tree runs on meanwhile;
// its writes are tracked as they are when memory is copied ahead.

const (
	earlyTime   = 60 * time.Millisecond  // after which it is looked at first
	writesTime  = 250 * time.Millisecond // and again
	inOrder     = 8                      // pages beside each other that are no chance
	lineBytes   = 16 << 20               // are sent at most to see what the line takes
	lineTime    = 150 * time.Millisecond // or as much as goes in that time
	firstPiece  = 1 << 20                // so much at first, then more and more: a connection begins slowly
	ticksSecond = 100                    // USER_HZ, of the times in /proc/PID/stat (include/asm-generic/param.h)
)

// gauge measures one tree and one line.
type gauge struct {
	c    *ahead.Copier // nil: writes can't be tracked here
	tree func() ([]ahead.Process, error)
	// line sends so many bytes, waits until they have arrived, and says how many it were and how long that took. Less than was asked for: there are no more.
	line func(bytes uint64) (sent uint64, took time.Duration, err error)
	trip time.Duration
}

// look fills in what is measured. The protection of the tree's pages stays on.
func (g *gauge) look(ctx context.Context, f *conditions) error {
	if g.c != nil {
		if err := g.c.Track(g.tree); err != nil {
			return err
		}
		if err := g.c.Protect(); err != nil {
			return err
		}
	}
	used, err := g.cpuTime()
	if err != nil {
		return err
	}
	began := time.Now()
	early, _, err := g.written(ctx, earlyTime)
	if err != nil {
		return err
	}
	first := time.Since(began)
	dirty, runs, err := g.written(ctx, writesTime-first)
	if err != nil {
		return err
	}
	f.count(float64(early), float64(dirty), runs, first, time.Since(began))
	f.tracked = g.c != nil
	now, err := g.cpuTime()
	if err != nil {
		return err
	}
	f.busy = max(now-used, 0).Seconds() / time.Since(began).Seconds()
	f.trip = g.trip
	f.rate, err = g.lineRate()
	return err
}

// written waits, and says how much has been written since the protection.
func (g *gauge) written(ctx context.Context, wait time.Duration) (bytes uint64, runs int, err error) {
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
	}
	if g.c == nil {
		return 0, 0, nil
	}
	return g.c.DirtyRuns()
}

// count takes what was written in a short time and in a longer one, the latter in so many runs of pages.
func (f *conditions) count(early, dirty float64, runs int, first, took time.Duration) {
	f.seen = dirty / took.Seconds()
	// As many writes anywhere as leave so much written: pages that are written again do not count in what was seen.
	all := func(seen float64) float64 { return -f.memory * math.Log(1-min(seen/f.memory, 0.98)) }
	f.writes, f.growth, f.random = all(dirty)/took.Seconds(), 1, true
	if early > 0 && early < 0.9*f.memory {
		f.growth = math.Log(all(max(dirty, early))/all(early)) / math.Log(float64(took)/float64(first))
		f.growth = min(f.growth, 1)
	}
	// Pages at random lie beside each other, too, if there are many of them.
	if part := dirty / f.memory; runs > 0 && part < 0.5 {
		f.random = dirty/pageSize/float64(runs) < inOrder/(1-part)
	}
}

// lineRate is what the line carries, in bytes a second: of the last piece that was sent, the largest.
func (g *gauge) lineRate() (rate float64, err error) {
	total := time.Duration(0)
	for piece, sent := uint64(firstPiece), uint64(0); sent < lineBytes && total < lineTime; piece *= 3 {
		piece = min(piece, lineBytes-sent)
		n, took, err := g.line(piece)
		if err != nil {
			return 0, fmt.Errorf("measure the line: %w", err)
		}
		total += took
		if sent += n; n == 0 {
			break
		}
		rate = float64(n) / max(took-g.trip, time.Microsecond).Seconds()
		if n < piece {
			break
		}
	}
	return max(rate, pageSize), nil
}

// cpuTime is what the tree has taken so far. Processes that end take theirs with them.
func (g *gauge) cpuTime() (sum time.Duration, err error) {
	all, err := g.tree()
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
		if err != nil {
			continue // it has ended
		}
		// After the name, which may have any byte in it: state is field 3, utime and stime are 14 and 15.
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) < 13 {
			return 0, fmt.Errorf("read CPU time of process %d: %q", p.PID, b)
		}
		for _, s := range f[11:13] {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read CPU time of process %d: %w", p.PID, err)
			}
			sum += time.Duration(n) * time.Second / ticksSecond
		}
	}
	return sum, nil
}
