package hot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

const (
	mostRounds = 20
	firstWait  = 20 * time.Millisecond
	leastWait  = 5 * time.Millisecond
	mostWait   = 200 * time.Millisecond

	fewMarked, manyMarked = 0.01, 0.05 // of all pages: between these a round tells most
)

// watched is a process whose bits are read.
type watched struct {
	Process
	mem     *os.File // keeps the address space
	pgd     uint64
	present uint64
}

// byBPF is rounds of clearing and reading.
func (o *Options) byBPF(ctx context.Context, all []Process) (r Result, err error) {
	if err := affordable(all); err != nil {
		return r, err
	}
	k, err := openKernel()
	if err != nil {
		return r, err
	}
	defer k.close()
	var list []*watched
	defer func() {
		for _, w := range list {
			w.mem.Close()
		}
	}()
	seen := map[uint64]bool{} // address spaces: processes may share one
	for _, p := range all {
		w, mm, err := k.watch(p)
		if err != nil {
			o.Log.Info("process is not looked at for hot pages", "pid", p.PID, "why", err)
			continue
		}
		if seen[mm] {
			w.mem.Close()
			continue
		}
		seen[mm] = true
		list = append(list, w)
	}
	if len(list) == 0 {
		return r, errors.New("no process can be looked at")
	}
	s, present, err := o.rounds(ctx, k, list)
	if err != nil {
		return r, err
	}
	return Result{Spans: s.List(present), Rounds: s.rounds}, nil
}

func (k *kernel) watch(p Process) (*watched, uint64, error) {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.PID))
	if err != nil {
		return nil, 0, err
	}
	pgd, mm, err := k.tableOf(p.PID, mem)
	if err != nil {
		mem.Close()
		return nil, 0, err
	}
	return &watched{Process: p, mem: mem, pgd: pgd}, mm, nil
}

// rounds goes on as long as there is time, and clearing has not cost too much.
func (o *Options) rounds(ctx context.Context, k *kernel, list []*watched) (s *Scores, present uint64, err error) {
	s = NewScores()
	end := time.Now().Add(o.Time)
	stalled, wait := time.Duration(0), firstWait
	for s.rounds < mostRounds {
		began := time.Now()
		for _, w := range list {
			_ = clearBits(w.PID) // it may have ended
		}
		took := time.Since(began)
		stalled += took
		if err := sleep(ctx, wait); err != nil {
			return nil, 0, err
		}
		marked := uint64(0)
		present = 0
		for _, w := range list {
			n, err := k.look(w, s)
			if err != nil {
				return nil, 0, err
			}
			marked += n
			present += w.present
		}
		s.Round(marked, present)
		switch share := float64(marked) / float64(max(present, 1)); {
		case share < fewMarked:
			wait = min(2*wait, mostWait)
		case share > manyMarked:
			wait = max(wait/2, leastWait)
		}
		if stalled+took > o.Stall || time.Until(end) < wait {
			break
		}
	}
	o.Log.Info("looked for hot pages", "rounds", s.rounds, "pages", present, "marked", s.share/float64(s.rounds), "clearing", stalled, "wait", wait)
	return s, present, nil
}

// look counts which pages of a process have been touched.
func (k *kernel) look(w *watched, s *Scores) (marked uint64, err error) {
	ranges, err := mappings(w.PID)
	if err != nil || len(ranges) == 0 {
		w.present = 0 // it has ended
		return 0, nil
	}
	w.present = 0
	err = k.walk(w.pgd, ranges, func(addr uint64, e entry, n int) {
		w.present += uint64(n)
		if e.hot() {
			marked += uint64(n)
			s.Add(w.ID, addr, uint64(n))
		}
	})
	return marked, err
}
