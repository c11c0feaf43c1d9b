package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/lazymig/lazymig/dump"
	"github.com/lazymig/lazymig/internal/budget"
	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// SourceOptions are those of one migration, as `lazymig migrate` gives them to the process that carries it out.
type SourceOptions struct {
	ID           wire.ID       `json:"id"`
	PID          int           `json:"pid"`
	To           string        `json:"to"`
	StateDir     string        `json:"state_dir"`
	TLSDir       string        `json:"tls_dir"`
	CRIUPath     string        `json:"criu_path"`
	CRIUPrefix   string        `json:"criu_prefix"`
	AcceptLoss   bool          `json:"accept_loss"`
	OnSourceLoss string        `json:"on_source_loss"` // LossWait (also if empty), LossKill
	LossAfter    time.Duration `json:"loss_after"`     // for LossKill
	Stdio        string        `json:"stdio"`          // StdioRelay (also if empty), StdioJournal, StdioNull, or a path on the target
	Exe          string        `json:"exe"`

	Until string   `json:"until,omitempty"` // UntilDrained if empty
	With  []string `json:"with,omitempty"`
	Local []string `json:"local,omitempty"`

	Mode        string        `json:"mode,omitempty"`         // ModePost if empty
	MaxDowntime time.Duration `json:"max_downtime,omitempty"` // for ModePre: what memory may take of it
	Unit        bool          `json:"unit,omitempty"`         // see sourceunit.go

	Track string `json:"track,omitempty"` // TrackAuto if empty

	Hot string `json:"hot,omitempty"` // how hot pages are found: hot.Auto (also if empty), hot.BPF, …

	Remote []string `json:"remote,omitempty"` // directories whose files stay here, clean, none in another

	Cleartext   bool   `json:"cleartext,omitempty"`    // pages and files without TLS
	BwLimit     uint64 `json:"bw_limit,omitempty"`     // bytes a second that what nobody waits for may take; 0: any number
	Connections int    `json:"connections,omitempty"`  // bulk lanes; 0: one, AutoConnections: as many as help
	Compress    string `json:"compress,omitempty"`     // memory that is pushed; see pagesrv.ServerOptions
	RemoveFiles bool   `json:"remove_files,omitempty"` // what With names, when the tree lives on the target's copies
	InPlace     bool   `json:"in_place,omitempty"`     // what With names goes to its own path on the target
	Overwrite   bool   `json:"overwrite,omitempty"`    // whatever is there

	ImagesOnDisk bool `json:"images_on_disk,omitempty"` // beside the record, not on a tmpfs
}

const (
	restoreTime = 60 * time.Second // images sent to held
	backoffMin  = 50 * time.Millisecond
	backoffMax  = 2 * time.Second
)

// errAborted is the cause when a person gave up before the grant.
var errAborted = errors.New("aborted")

// Source is one migration on the source. Run drives it.
type Source struct {
	opt  SourceOptions
	log  *slog.Logger
	emit func(Event) // called by Run's goroutine, and by whoever refuses to abort

	onRecord func() error // called when the record's directory is there; nil: nothing

	d       *dialer
	rep     *preflight.Report
	rec     *Record
	dump    *dump.Dump
	pages   *pagesrv.Server
	files   *remotefs.Server
	budget  *budget.Budget // of pages and files; nil: no limit
	lanes   lanes
	guest   *guest // nil: the tree has not come by a migration
	sess    *session
	warden  *wardens
	view    *os.File // the socket to whoever follows the migration, for the warden to keep; nil: nobody does
	streams sourceStreams
	going   going
	held    *heldFiles // of a process before this one
	journal *journaling
	relay   *relayLink // to the warden's relay; nil before the grant, and if there are no streams

	pagesReady  chan struct{} // closed when pages is there
	seeding     sync.WaitGroup
	mode        string   // opt.Mode, or what auto has chosen
	copy        *copying // nil: nothing is copied ahead
	aheadRoom   uint64   // what the target keeps
	aheadPacked bool     // it takes that compressed, too
	good        chan goodResult
	hot         *hotSearch // nil: it is not looked for hot pages
	eagerShared bool       // the target can't take shared memory lazily
	waited      uint64     // file operations up to the freeze

	result *dump.Result
	dbs    databases
	clock  clockOffset
	times  Event // figures for done
	stayed bool  // the target has said that the tree stays drained
	grant  time.Time
	cores  int // incomplete core dumps that have been told

	lostFiles []string // that are not found again
	filesErr  error    // why none is served

	mu       sync.Mutex // guards what Status and Abort look at
	carries  bool       // standard streams
	residual []string   // what the tree still needs, if that is not just its pages and files
	state    State
	last     progressMsg
	since    time.Time // the target is away since then
	abort    context.CancelCauseFunc
	units    units
}

// NewSource makes a migration; emit gets every event.
func NewSource(opt SourceOptions, emit func(Event), log *slog.Logger) *Source {
	return &Source{opt: opt, mode: opt.Mode, budget: budget.New(opt.BwLimit), emit: emit, log: log.With("id", opt.ID), pagesReady: make(chan struct{})}
}

// stageError is a failure with the stage in which it happened.
type stageError struct {
	stage string
	err   error
}

func (e *stageError) Error() string { return e.stage + ": " + e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

func stage(name string, err error) error {
	var inner *stageError
	if err == nil || errors.As(err, &inner) { // the innermost stage is the one
		return err
	}
	return &stageError{name, err}
}

// Run carries the migration out. It returns when the tree runs as before (an error), or has ended on the target (nil), or can't go on.
func (s *Source) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	s.abort = cancel
	s.mu.Unlock()
	defer s.close()
	err := s.untilGranted(ctx)
	if err != nil {
		return s.undo(err)
	}
	return s.whileServing(context.WithoutCancel(ctx)) // nothing aborts it any more
}

func (s *Source) event(e Event) {
	e.Time, e.ID = time.Now(), s.opt.ID.String()
	if e.PID == 0 {
		e.PID = s.opt.PID
	}
	s.emit(e)
}

func (s *Source) notice(format string, args ...any) {
	s.event(Event{Event: "notice", Text: fmt.Sprintf(format, args...)})
}

func (s *Source) enter(st State, note string) error {
	if err := s.rec.Enter(st, note); err != nil {
		return err
	}
	s.mu.Lock()
	s.state = st
	s.mu.Unlock()
	return nil
}

// undo is every failure before the grant: the tree runs as if nothing had happened, the target is told.
func (s *Source) undo(cause error) error {
	state := "running"
	s.hot.stop()
	if s.dump != nil {
		err := s.rec.Sure()
		if err == nil {
			err = s.dump.Abort()
		} else if gerr := s.dump.Granted(); gerr != nil { // the record may say granted, so nobody thaws before `recover` has asked the target
			err = errors.Join(err, gerr)
		}
		if err != nil {
			state = "frozen"
			cause = errors.Join(cause, fmt.Errorf("thaw tree: %w", err))
		}
	}
	if s.rec != nil && state == "running" {
		if err := releaseUnit(s.rec.Dir); err != nil {
			cause = errors.Join(cause, err)
		}
	}
	s.copy.close() // writes are not tracked any more
	if s.sess != nil {
		_ = s.sess.send(wire.MsgAbort, nil) // if it is lost the target sees the connection end
	}
	if s.rec != nil {
		if err := s.enter(Aborted, cause.Error()); err != nil {
			cause = errors.Join(cause, err)
		}
	}
	e := Event{Event: "failed", Stage: "prepare", Error: cause.Error(), SourceState: state}
	if se, ok := errors.AsType[*stageError](cause); ok {
		e.Stage, e.Error = se.stage, se.err.Error()
	}
	s.event(e)
	s.log.Warn("migration given up", "audit", true, "to", s.opt.To, "pid", s.opt.PID, "tree", state, "why", cause)
	if s.result != nil && !heard(s.sess) {
		s.warden.over() // told here
		tellAborted(s.d, cause, s.log)
	}
	return cause
}

func (s *Source) close() {
	s.lanes.close()
	s.streams.close()
	if s.sess != nil {
		s.sess.close()
	}
	s.seeding.Wait()
	s.hot.stop()
	s.copy.close()
	s.stopJournal()
	if s.files != nil {
		_ = s.files.Close() // nothing is served any more
	}
	if s.pages != nil {
		_ = s.pages.Close()
	}
	if s.dump != nil {
		if err := s.dump.Close(); err != nil {
			s.log.Error("take dump away", "err", err)
		}
	}
	s.units.wg.Wait()
	s.warden.over()
	s.guest.close()
	if s.rec != nil {
		s.rec.Close()
	}
}

// untilGranted is prepare … granted. When it returns nil the grant is on disk here.
func (s *Source) untilGranted(ctx context.Context) error {
	if err := s.preflight(ctx); err != nil {
		return stage("preflight", err)
	}
	if err := s.prepare(ctx); err != nil {
		return stage("prepare", err)
	}
	s.hot.await()
	if err := s.copyAhead(ctx); err != nil {
		return stage("ahead", err)
	}
	if err := s.sendHot(ctx); err != nil {
		return stage("prepare", err)
	}
	if err := s.findDatabases(); err != nil {
		return stage("prepare", err)
	}
	ctx, unwatched := s.sess.watch(ctx)
	defer unwatched()
	if err := s.holdUnit(); err != nil {
		return stage("prepare", err)
	}
	if err := s.freeze(ctx); err != nil {
		return stage("freeze", err)
	}
	began := time.Now()
	if err := s.transfer(); err != nil {
		if cause := context.Cause(ctx); cause != nil { // what was written to has been closed for it
			err = cause
		}
		return stage("transfer", err)
	}
	s.times.TransferMS = ms(time.Since(began))
	var held heldMsg
	if err := s.awaitHeld(ctx, &held); err != nil {
		return stage("restore", err)
	}
	s.times.RestoreMS, s.times.FillMS = held.RestoreMS, held.FillMS
	s.times.FileTrips = s.files.Stats().Waited - s.waited
	s.times.PageTrips = s.pages.Stats().Urgent.Requests
	if context.Cause(ctx) != nil {
		return stage("restore", context.Cause(ctx))
	}
	s.grant = time.Now()
	return stage("grant", s.commit(ctx))
}

// commit is the handover's first half: after Enter(Granted) the tree never runs here again.
func (s *Source) commit(ctx context.Context) error {
	if err := s.dump.Check(); err != nil {
		return err
	}
	park.At(s.log, "grant")
	if err := s.refused(ctx); err != nil {
		return err
	}
	if err := s.enter(Granted, ""); err != nil { // the keeper reads it there: from now on it does not thaw
		return err
	}
	if err := s.dump.Granted(); err != nil { // somebody has thawed it since Check: it runs here, so it must not run there
		s.mu.Lock()
		s.state = Frozen
		s.mu.Unlock()
		return errors.Join(err, s.rec.Withdraw())
	}
	return nil
}

// refused is the last look before the grant: a person may have given up, or the target have said that it can't take the tree any more: nothing is granted then,
// which is better than taken back. That the connection has ended says nothing.
func (s *Source) refused(ctx context.Context) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		select {
		case f, ok := <-s.sess.frames:
			switch {
			case !ok:
				return nil
			case f.h.Type == wire.MsgError:
				return wire.ParseError(f.p)
			case f.h.Type == wire.MsgDial:
				var m dialMsg
				if err := decode(f.p, &m); err != nil {
					return err
				}
				s.dialed(context.WithoutCancel(ctx), m) // what it asks for it asks for once
			default:
				return fmt.Errorf("target says message %d while it waits for the grant", f.h.Type)
			}
		default:
			return nil
		}
	}
}

func (s *Source) freeze(ctx context.Context) error {
	r, err := s.dump.Freeze(ctx)
	if err != nil {
		return err
	}
	s.result = r
	for _, e := range r.Eager {
		s.notice("copied while the tree stands still: %s", e)
	}
	s.times.DumpMS, s.times.MemoryBytes, s.times.TCPClosed = r.DumpMS, r.MemoryBytes, r.TCPClosed
	s.waited = s.files.Stats().Waited
	s.seeding.Go(s.seedFrozen) // beside the images
	s.goodAhead()
	s.recheckDatabases()
	if err := s.servePages(); err != nil {
		return err
	}
	park.At(s.log, "frozen")
	s.event(Event{Event: "frozen", MemoryBytes: r.MemoryBytes})
	return s.enter(Frozen, "")
}

func (s *Source) transfer() error {
	streams, err := s.openStdio()
	if err != nil {
		return err
	}
	if err := s.writeGoing(); err != nil {
		return err
	}
	early := make([]earlyPage, len(s.result.Early))
	for i, p := range s.result.Early {
		early[i] = earlyPage{Task: p.Task, Addr: p.Addr, Data: p.Data}
	}
	n, err := sendImages(s.sess.c, s.result.ImagesDir, encodeEarly(early))
	s.times.BytesSent += uint64(n)
	if err != nil {
		return err
	}
	want := &s.rep.Want
	dbs, locks, err := s.frozenDatabases()
	if err != nil {
		return err
	}
	m := restoreMsg{TCPClose: want.TCPClose, ShellJob: want.ShellJob, Fixups: want.Fixups, Tasks: taskMem(s.result), Stdio: streams, Databases: dbs, Locks: locks, Mode: s.mode, Ahead: s.good != nil}
	if err := s.sess.send(wire.MsgRestore, m); err != nil {
		return err
	}
	return s.sendGood()
}

// dialed does what a MsgDial asks for.
func (s *Source) dialed(ctx context.Context, m dialMsg) { s.lanes.dial(ctx, s, m.Lanes) }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
