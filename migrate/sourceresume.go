package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/dump"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// resumeArg follows SourceArg when a warden starts the source's process: state directory and ID come after it.
const resumeArg = "resume"

// resumeMain is the source's process that follows one which was killed.
func resumeMain(log *slog.Logger) error {
	if len(os.Args) != 5 {
		return errors.New("the process that takes a migration up is started by its warden, not by hand")
	}
	id, err := wire.ParseID(os.Args[4])
	if err != nil {
		return err
	}
	raiseFiles()
	sock, err := fdpass.New(os.NewFile(3, "warden"))
	if err != nil {
		return err
	}
	h, err := receive(sock, log)
	if err != nil {
		sock.Close()
		return err
	}
	v := &viewEnd{}
	if f := h.view(); f != nil {
		if v.sock, err = fdpass.New(f); err != nil {
			return err
		}
	}
	s, err := resumeSource(os.Args[3], id, h, v.emit, log)
	if err != nil {
		h.link.close() // it tries again
		return err
	}
	return v.run(s, func() error { return s.goOn(context.Background()) })
}

func (g *going) dialer() (*dialer, error) {
	k, err := keys.Load(g.Options.TLSDir)
	if err != nil {
		return nil, err
	}
	return &dialer{addr: g.Options.To, keys: k.Since(g.Frozen), id: g.Options.ID, token: g.Token, cleartext: g.Options.Cleartext}, nil
}

// resumeSource makes a Source of what stands after a grant. h is what a warden has handed over.
func resumeSource(stateDir string, id wire.ID, h *handedOver, emit func(Event), log *slog.Logger) (*Source, error) {
	k, err := find(stateDir, id, SideSource)
	if err != nil {
		return nil, err
	}
	st := k.Last().State
	if !st.Handed() || st.Final() {
		return nil, fmt.Errorf("take migration %v up: it is in state %q", id, st)
	}
	if k.Last().Boot != bootID() {
		return nil, fmt.Errorf("take migration %v up: this host has been started anew since, the frozen tree is no more", id)
	}
	g, err := readGoing(stateDir, id)
	if err != nil {
		return nil, err
	}
	s := NewSource(g.Options, emit, log)
	s.state = st
	if s.rec, err = openRecord(k); err != nil {
		return nil, err
	}
	// A record may have been read that never got to the disk: the grant must be there before it is said again.
	if err := errors.Join(s.rec.lock(), s.rec.f.Sync()); err != nil {
		s.rec.Close()
		return nil, fmt.Errorf("take migration %v up: %w", id, err)
	}
	if s.d, err = g.dialer(); err != nil {
		s.rec.Close()
		return nil, err
	}
	s.rep = &preflight.Report{Want: preflight.Want{Stdio: g.Stdio}, Tree: preflight.Tree{Groups: g.Groups}}
	s.result = g.Left.Result()
	s.result.FrozenAt = g.Frozen
	s.clock, s.times, s.grant = clockOffset{offset: g.Clock, err: g.ClockOK}, g.Times, k.entered(Granted)
	s.lanes.redial, s.going = true, *g
	if s.warden, err = h.takeWarden(g.Options.Exe, stateDir, id, s.log); err != nil {
		s.rec.Close()
		return nil, err
	}
	s.held = h.held()
	if err := s.takeUp(g, h); err != nil {
		if h.link != nil {
			s.warden.leave() // it tries again
			s.warden = nil
		}
		s.close()
		return nil, err
	}
	return s, nil
}

// takeUp takes the frozen tree and the file server's state.
func (s *Source) takeUp(g *going, h *handedOver) (err error) {
	s.dump, err = dump.Adopt(g.Left, s.log)
	switch {
	case errors.Is(err, dump.ErrGone) && s.state != Drained && s.held == nil:
		s.log.Error("memory that the target has not got is lost; what waits for it there waits for ever", "err", err)
	case errors.Is(err, dump.ErrNotStopped):
		return s.lost(err)
	case err != nil && !errors.Is(err, dump.ErrGone):
		return err
	}
	alive := err == nil
	if f := h.take(keptGuest); f != nil {
		s.guest = &guest{life: f}
	} else if alive {
		if s.guest, err = startGuest(s.opt.Exe, s.opt.PID); err != nil {
			return err
		}
	}
	if h.recovers {
		st, err := s.loadFiles(g)
		if err != nil {
			s.filesErr = err
		} else {
			h.files = *st
		}
	}
	if h.files.Whole() {
		o := remotefs.ServerOptions{Groups: g.Groups, Log: s.log, Writers: s.writers, Budget: s.budget}
		if s.files, err = remotefs.NewServerFrom(&h.files, o); err != nil {
			return err
		}
		s.startJournal()
	}
	if s.held != nil {
		s.holdOn(s.held.files)
	}
	if alive {
		if err := s.servePages(); err != nil {
			return err
		}
	}
	if h.Streams {
		s.relay = s.warden.link().relay
	} else if h.recovers {
		s.lostStreams()
	} else if alive && s.state == Granted { // the one before did not come to it
		if _, err := s.copyStreams(); err != nil {
			return err
		}
		s.startRelay()
	}
	return nil
}

// goOn serves what was taken up.
func (s *Source) goOn(ctx context.Context) error {
	defer s.close()
	s.log.Warn("the migration is taken up", "audit", true, "state", s.State(), "to", s.opt.To)
	if s.onRecord != nil {
		if err := s.onRecord(); err != nil {
			return err
		}
	}
	s.notice("the source's process was killed; another serves on")
	if s.filesErr != nil {
		s.notice("its warden was killed, too, and which files the tree has open can't be told, so what it does with files waits; its memory is served: %v", s.filesErr)
	}
	for i, f := range s.lostFiles {
		if i == mostLost {
			s.notice("and %d files more", len(s.lostFiles)-i)
			break
		}
		s.notice("a file that the tree knows is not found any more, what the tree does with it fails (ESTALE): it was %s", f)
	}
	if s.State() != Drained {
		s.dropSockets()
	}
	return s.serveOn(ctx)
}

const mostLost = 20 // files that are named

// heldFiles are copies of the tree's descriptors of files, with the POSIX locks that are to be taken again.
type heldFiles struct {
	files []*os.File
	locks []heldLock
}

// heldLock is a POSIX lock on one of the files.
type heldLock struct {
	File int          `json:"file"`
	Lock unix.Flock_t `json:"lock"`
}

func (h *handedOver) held() *heldFiles {
	k := h.kept[keptFiles]
	if k == nil {
		return nil
	}
	f := &heldFiles{files: k.files}
	k.files = nil
	for _, d := range k.data {
		_ = json.Unmarshal(d, &f.locks) // written by hold
	}
	return f
}

// holdOn keeps copies of the tree's descriptors until the end.
func (s *Source) holdOn(files []*os.File) {
	if s.files != nil {
		s.files.Hold(files)
	} // else the warden has them
}

// hold gives copies of the tree's descriptors, which the warden keeps as well before the tree is killed.
func (s *Source) hold() ([]*os.File, []posixLock, error) {
	if s.held != nil { // the process before has
		var locks []posixLock
		for _, l := range s.held.locks {
			if l.File < len(s.held.files) {
				locks = append(locks, posixLock{s.held.files[l.File], l.Lock})
			}
		}
		return nil, locks, nil
	}
	files, locks, err := s.holdFiles()
	list := make([]heldLock, 0, len(locks))
	for _, l := range locks {
		for i, f := range files {
			if f == l.file {
				list = append(list, heldLock{i, l.lk})
			}
		}
	}
	if kerr := s.warden.keep(keptFiles, list, files...); kerr != nil {
		s.log.Warn("let warden keep descriptors of the tree", "err", kerr) // the next one is told
	}
	return files, locks, err
}
