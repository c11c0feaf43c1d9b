package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lazymig/lazymig/dump"
	"github.com/lazymig/lazymig/wire"
)

// What a person can do when nobody goes on by himself any more: Recover serves a granted tree again, ResumeHere lets it run again where it is.

// Recover takes a migration of this host up of which source's part and warden were killed, and serves it until it is over, or ctx ends. A migration that a process carries out already gives ErrServed.
func Recover(ctx context.Context, stateDir string, id wire.ID, tlsDir string, emit func(Event), log *slog.Logger) error {
	raiseFiles()
	g, err := readGoing(stateDir, id)
	if err != nil {
		return err
	}
	if tlsDir != "" {
		g.Options.TLSDir = tlsDir
		if err := writeState(goingPath(stateDir, id), g); err != nil {
			return fmt.Errorf("keep directory of certificates: %w", err)
		}
	}
	if _, err := Ask(stateDir, id, "status"); err == nil {
		return fmt.Errorf("recover migration %v: %w", id, ErrServed)
	}
	s, err := resumeSource(stateDir, id, &handedOver{kept: map[string]*kept{}, recovers: true}, emit, log)
	if err != nil {
		return err
	}
	return (&viewEnd{}).run(s, func() error { return s.goOn(ctx) })
}

// mayResume says whether anything speaks against it but the target.
func (k Known) mayResume() error {
	for _, e := range k.Entries {
		if e.State == Resumed || e.State == Drained || e.State == Detached || e.State == Ended {
			return fmt.Errorf("the tree has run on the target (%s)", e.State)
		}
	}
	if k.Last().Boot != bootID() {
		return errors.New("this host has been started anew since, the frozen tree is no more")
	}
	return nil
}

const proofTime = time.Minute

// ErrNoProof says that the target did not prove that the tree never ran there.
var ErrNoProof = errors.New("the target does not prove that the tree never ran there")

// ResumeHere lets the frozen tree of a granted migration run again on this host. Before that the target proves that it never ran there, nor will: it kills
// what it holds and has that on disk. An unknown migration is no proof. targetDead is a person's word instead; if it is wrong the tree runs twice.
func ResumeHere(ctx context.Context, stateDir string, id wire.ID, tlsDir string, targetDead bool, log *slog.Logger) error {
	k, err := find(stateDir, id, SideSource)
	if err != nil {
		return err
	}
	locked, err := openRecord(k)
	if err != nil {
		return err
	}
	defer locked.Close()
	if err := locked.lock(); err != nil { // its process would go on granting
		return err
	}
	if k, err = find(stateDir, id, SideSource); err != nil { // nobody else writes from now on
		return err
	}
	r, err := openRecord(k)
	if err != nil {
		return err
	}
	defer r.Close()
	g, err := readGoing(stateDir, id)
	if err != nil {
		return err
	}
	if tlsDir != "" {
		g.Options.TLSDir = tlsDir
	}
	if err := k.mayResume(); err != nil {
		return fmt.Errorf("resume migration %v here: %w", id, err)
	}
	var note string // durable before the first instruction
	switch {
	case !r.last.State.Handed() && r.last.State.Final(): // it was not thawed then
	case !r.last.State.Handed():
		note = "resumed here: nothing was granted"
		err = r.Enter(Aborted, note)
	case targetDead:
		note = "resumed here: the target is dead, as a person says"
		err = r.TakeBack(note)
	default:
		note = "resumed here: the target has proven that it never ran"
		if err = g.proof(ctx, log); err == nil {
			err = r.TakeBack(note)
		}
	}
	if err != nil {
		return fmt.Errorf("resume migration %v here: %w", id, err)
	}
	if err := errors.Join(dump.Thaw(g.Left), releaseUnit(r.Dir)); err != nil {
		return err
	}
	log.Info("tree runs here again", "audit", true, "id", id, "pid", g.Options.PID, "why", note)
	return nil
}

// proof asks the target until it says that what it held is dead. A source that says aborted is obeyed by a target that holds the tree, and by no other.
func (g *going) proof(ctx context.Context, log *slog.Logger) error {
	d, err := g.dialer()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	for {
		st, err := g.askState(ctx, d)
		switch {
		case err != nil:
			log.Info("ask the target", "err", err)
		case st.State == Aborted:
			return nil
		case st.State != Asked && st.State != Frozen && st.State != Prepare: // those: it is being killed
			return fmt.Errorf("%w: it says %q %s", ErrNoProof, st.State, st.Note)
		}
		select {
		case <-time.After(backoffMax / 10):
		case <-ctx.Done():
			return errors.Join(ErrNoProof, err)
		}
	}
}

func (g *going) askState(ctx context.Context, d *dialer) (m stateMsg, err error) {
	c, err := d.dial(ctx, wire.LaneControl)
	if err != nil {
		return m, err
	}
	s := newSession(c, nil)
	defer s.close()
	if err := s.send(wire.MsgState, stateMsg{State: Aborted, Note: "its source takes the tree back", Token: g.Token}); err != nil {
		return m, err
	}
	return m, s.await(ctx, wire.MsgState, &m, silence, nil)
}
