package migrate

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"time"

	"github.com/lazymig/lazymig/ahead"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/wire"
)

// Outlook is what each mode is expected to come to, and what that was made of.
type Outlook struct {
	Best      string     `json:"best"` // what --mode auto would choose
	Text      string     `json:"text"` // why
	Forecasts []Forecast `json:"forecasts"`
	Measured  *Measured  `json:"measured,omitempty"`
}

// Answer is what an agent says when it is asked by AskTarget.
type Answer struct {
	Facts   preflight.Facts
	Ahead   time.Duration // of its clock before ours
	Off     time.Duration // that is at most so wrong
	Outlook *Outlook      // nil: no tree was named
}

// AskTarget asks an agent what its host can do and how its clock stands, and measures what modes would come to for a tree, if there is one: as --mode auto does, but what goes
// over the line is not the tree's memory. The tree runs on, its writes are tracked for a quarter of a second, and when this returns nothing is left of that.
func AskTarget(ctx context.Context, addr, tlsDir string, tree *preflight.Tree, allowed time.Duration, exe string, log *slog.Logger) (*Answer, error) {
	s, err := askSession(ctx, addr, tlsDir)
	if err != nil {
		return nil, err
	}
	defer s.close()
	a := &Answer{}
	if a.Facts, err = askFacts(ctx, s); err != nil {
		return nil, err
	}
	off, err := measureClock(ctx, s)
	if err != nil {
		return nil, err
	}
	a.Ahead, a.Off = off.offset, off.err
	if len(tree.Tasks) == 0 {
		return a, nil
	}
	f := conditions{memory: float64(tree.MemoryPresent), allowed: allowed}
	g := gauge{trip: 2 * off.err, tree: func() (all []ahead.Process, _ error) {
		for i, t := range tree.Tasks {
			all = append(all, ahead.Process{ID: uint32(i + 1), PID: t.PID})
		}
		return all, nil
	}}
	garbage := make([]byte, 256<<10)
	_, _ = rand.Read(garbage) // never fails; a tunnel on the way may compress what repeats itself
	g.line = func(n uint64) (uint64, time.Duration, error) { return pushGarbage(ctx, s, garbage, n) }
	if a.Facts.Features[preflight.Modes] {
		f.room, f.compared = float64(a.Facts.AheadRoom), !ahead.Supported()
		o := ahead.Options{Compare: f.compared, Log: log}
		if !f.compared {
			i, err := preflight.StartInjector(exe)
			if err != nil {
				return nil, err
			}
			defer func() { _ = i.Close() }() // its work is done
			o.Borrow, o.CloseIn = i.Borrow, i.CloseIn
		}
		g.c = ahead.New(o)
		defer g.c.Close()
	}
	if err := g.look(ctx, &f); err != nil {
		return nil, fmt.Errorf("measure writes and line: %w", err)
	}
	a.Outlook = f.outlook()
	return a, nil
}

// pushGarbage sends bytes that nobody keeps: whatever a ping brings along is read and forgotten.
func pushGarbage(ctx context.Context, s *session, garbage []byte, n uint64) (uint64, time.Duration, error) {
	began := time.Now()
	for left := n; left > 0; {
		p := garbage[:min(left, uint64(len(garbage)))]
		if err := s.sendParts(wire.MsgPing, p); err != nil {
			return 0, 0, err
		}
		left -= uint64(len(p))
	}
	if err := s.send(wire.MsgClock, clockMsg{Sent: began.UnixNano()}); err != nil {
		return 0, 0, err
	}
	err := s.await(ctx, wire.MsgClock, nil, checkTime, nil) // it is answered when all before it has been read
	return n, time.Since(began), err
}
