package migrate

import (
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/wire"
)

// TestSweepGranted: a tree that was being let go when its agent died, and of which nothing is left, has not "ended": the source would kill
// the only one that there may be.
func TestSweepGranted(t *testing.T) {
	kerneltest.Need(t, kerneltest.Root)
	for state, want := range map[State]State{Frozen: Aborted, Asked: Aborted, Granted: LostTree, Resumed: Ended} {
		dir := t.TempDir()
		r := newRecord(t, dir, SideTarget)
		for _, s := range []State{Frozen, Asked, Granted, Resumed} {
			enter(t, r, s)
			if s == state {
				break
			}
		}
		all, err := List(dir)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		if got := sweepOne(all[0], restore.Here{}, slog.New(slog.DiscardHandler)); got != want {
			t.Errorf("%s and nothing there became %s, want %s", state, got, want)
		}
	}
}

// TestGoOnToken: a control connection of somebody who does not know the migration's token is not taken for its source's.
func TestGoOnToken(t *testing.T) {
	kerneltest.Leaks(t)
	id := wire.NewID()
	var m prepareMsg
	if _, err := rand.Read(m.Token[:]); err != nil {
		t.Fatal(err)
	}
	a := &Agent{targets: map[wire.ID]*Target{}}
	target := newTarget(a, id, m, slog.New(slog.DiscardHandler))
	a.targets[id] = target
	try := func(token wire.Token) {
		here, there := net.Pipe()
		defer there.Close()
		a.goOn(wire.NewConn(here), id, encode(stateMsg{State: Granted, Token: token}), slog.New(slog.DiscardHandler))
		here.Close()
	}
	wrong := m.Token
	wrong[31] ^= 1
	for _, token := range []wire.Token{{}, wrong} { // each returns at once
		try(token)
	}
	done := make(chan State)
	go func() {
		s := <-target.sessions
		s.close()
		done <- s.peer.State
	}()
	try(m.Token)
	if got := <-done; got != Granted {
		t.Errorf("the source of %s comes with %q", hex.EncodeToString(id[:]), got)
	}
}
