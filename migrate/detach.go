package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/lazyfs/store"
	"github.com/lazymig/lazymig/restore/detach"
	"github.com/lazymig/lazymig/wire"
)

// After drained: the files come over while the tree runs, then it is stopped once and put on them (package restore/detach), and nothing of lazymig
// stays, but for what is left on purpose (residual.go). All of it runs aside, in a goroutine; what it comes to is told by attend.

// Until what a migration goes.
const (
	UntilResumed  = "resumed"
	UntilDrained  = "drained"
	UntilDetached = "detached"
)

const (
	lookEvery  = 200 * time.Millisecond // at the store
	noteEvery  = 2 * time.Second        // for `lazymig status`
	againAfter = time.Second            // what keeps the tree from being moved may pass
	stopAfter  = 5 * time.Second        // the tree has been stopped for nothing; a lost connection is back by then
	mostTries  = 20
	mostStops  = 3               // of the tree, for nothing
	settleTime = 2 * time.Second // the tree is stopped meanwhile; a source that does not answer must not hold it for longer
	calmTime   = 2 * time.Minute // for what streamed writes have under way (package lazyfs, stream.go), while the tree runs
	leaveTime  = 30 * time.Second
)

// detachedMsg tells that the tree needs nobody any more.
type detachedMsg struct {
	StopMS      float64 `json:"stop_ms"`
	SettleMS    float64 `json:"settle_ms"`
	Descriptors int     `json:"descriptors"`
	Mappings    int     `json:"mappings"`
	Files       int     `json:"files"`
	Bytes       int64   `json:"bytes"`
	Connection  uint32  `json:"connection"`          // of FUSE, which is no more
	Connected   int     `json:"connected,omitempty"` // sockets that keep what is left of it in the kernel until they are closed
	Root        string  `json:"root"`

	Removed int      `json:"removed,omitempty"` // files, from the source
	Kept    []string `json:"kept,omitempty"`    // paths there that were to be removed, and why they are not

	Residual []string `json:"residual,omitempty"` // what it does need (residual.go)
	Places   []string `json:"places,omitempty"`   // what is at its own path (places.go)
	Aside    []string `json:"aside,omitempty"`    // what is in the store instead, and why
}

func (m *detachedMsg) check() error {
	if len(m.Kept) > maxReasons+1 || len(m.Residual) > maxReasons || len(m.Places) > 2*maxPaths+maxUses || len(m.Aside) > maxReasons+1 {
		return fmt.Errorf("%d paths, needs %d", len(m.Kept), len(m.Residual))
	}
	for i, k := range m.Kept {
		m.Kept[i] = trim(k)
	}
	for i, a := range m.Aside {
		m.Aside[i] = trim(a)
	}
	return nil
}

// filesMsg tells how far the files are, until one of the others.
type filesMsg struct {
	Here int   `json:"here"`
	Left int   `json:"left"`
	Size int64 `json:"size"` // bytes of those that are left
}

// staysMsg tells why the tree stays with its forwarded files; or, with Detached, what alone it needs.
type staysMsg struct {
	Reasons  []string     `json:"reasons"`
	Detached *detachedMsg `json:"detached,omitempty"`
}

const maxReasons = 50

func (m *staysMsg) check() error {
	if len(m.Reasons) == 0 || len(m.Reasons) > maxReasons {
		return fmt.Errorf("%d reasons", len(m.Reasons))
	}
	for i, r := range m.Reasons {
		m.Reasons[i] = trim(r)
	}
	if m.Detached != nil {
		return m.Detached.check()
	}
	return nil
}

// detaching is the goroutine. Its result comes once.
type detaching struct {
	cancel context.CancelFunc
	done   chan struct{}
	files  chan *filesMsg
	result chan any // *detachedMsg or *staysMsg
}

// startDetach is at drained.
func (t *Target) startDetach() {
	if t.msg.Until != UntilDetached || t.detach != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &detaching{cancel: cancel, done: make(chan struct{}), files: make(chan *filesMsg, 1), result: make(chan any, 1)}
	t.detach = d
	go func() {
		defer close(d.done)
		m, err := t.leave(ctx)
		if m != nil {
			if err != nil {
				t.log.Error("the tree is detached, but helpers of it are left", "err", err)
			}
			if len(m.Residual) > 0 {
				d.result <- &staysMsg{m.Residual, m}
			} else {
				d.result <- m
			}
			return
		}
		if ctx.Err() != nil {
			return
		}
		t.log.Warn("the tree stays with its forwarded files", "why", err)
		d.result <- &staysMsg{Reasons: reasonsOf(err)}
	}()
}

// stopDetach ends it and waits.
func (t *Target) stopDetach() {
	if t.detach != nil {
		t.detach.cancel()
		<-t.detach.done
	}
}

// detachEnds is where attend hears of it.
func (t *Target) detachEnds() <-chan any {
	if t.detach == nil {
		return nil
	}
	return t.detach.result
}

// detachFiles is where attend hears how far the files are.
func (t *Target) detachFiles() <-chan *filesMsg {
	if t.detach == nil {
		return nil
	}
	return t.detach.files
}

// detachEnded records and tells what it came to.
func (t *Target) detachEnded(result any) {
	switch m := result.(type) {
	case *staysMsg:
		t.stays = m
		if m.Detached != nil {
			t.log.Info("detached but for what stays at the source", "audit", true, "stop_ms", m.Detached.StopMS, "residual", m.Reasons)
			t.writeStatus(nil)
		}
		t.tell(wire.MsgStays, m)
	case *detachedMsg:
		t.detached = m
		t.stdio.streams().attach(nil)
		t.stdio.close()
		t.mu.Lock()
		t.stdio = nil
		t.mu.Unlock()
		if err := t.enter(Detached, filesAt(m)); err != nil { // the next agent finds the outcome of the switch
			t.log.Error("record detached", "err", err)
		} else {
			forgetSwitched(t.rec.Dir, t.log)
		}
		t.log.Info("detached", "audit", true, "stop_ms", m.StopMS, "descriptors", m.Descriptors, "mappings", m.Mappings, "files", m.Files, "connection", m.Connection)
		t.tell(wire.MsgDetached, m)
	}
}

func reasonsOf(err error) []string {
	if s, ok := errors.AsType[*detach.Stuck](err); ok {
		return s.Reasons[:min(len(s.Reasons), maxReasons)]
	}
	return []string{err.Error()}
}

// leave brings the files, switches, and ends what is not needed then.
func (t *Target) leave(ctx context.Context) (*detachedMsg, error) {
	if m := readSwitched(t.rec.Dir, t.log); m != nil { // an agent before this one has died since
		t.connection = findConnection(fuseConnections, m.Connection)
		return m, t.afterSwitch(m, false)
	}
	if err := t.takeBack(); err != nil { // an agent before this one has died over a switch that failed
		return nil, err
	}
	if t.fuse == nil {
		return nil, errors.New("this agent can't reach the tree's FUSE daemon")
	}
	dev, err := t.a.free.device(t.capsule.PID())
	if err != nil {
		return nil, err
	}
	t.connection = findConnection(fuseConnections, unix.Minor(dev))
	m, err := t.switchOver(ctx, dev)
	if err != nil {
		return nil, err
	}
	park.At(t.log, "switched")
	if err := t.noteDetached(); err != nil {
		t.log.Debug("note files", "err", err) // for people only
	}
	return m, t.afterSwitch(m, true)
}

// afterSwitch ends what is not needed. fresh: it was this agent that has switched.
func (t *Target) afterSwitch(m *detachedMsg, fresh bool) error {
	kept, err := t.finishPlaces()
	if err != nil {
		t.log.Error("files that were replaced", "err", err)
	}
	m.Aside = fewReasons(append(m.Aside, kept...))
	if len(m.Residual) > 0 {
		return t.endSome(m, fresh)
	}
	return t.endHelpers(m)
}

// switchOver tries until the tree is on its local files, or what keeps it from that does not pass.
func (t *Target) switchOver(ctx context.Context, dev uint64) (*detachedMsg, error) {
	stops := 0
	for try := 1; ; try++ {
		pause := againAfter
		err := t.filesReady(ctx, t.capsule.Tasks)
		if err != nil {
			return nil, err
		}
		park.At(t.log, "detach")
		stuck, err := t.stuck(dev)
		if err == nil && len(stuck) > 0 {
			err = &detach.Stuck{Reasons: stuck}
		}
		if err == nil {
			err = t.calm(ctx)
		}
		if err == nil {
			var m *detachedMsg
			if err = t.choosePlaces(func(p string) (string, error) { return t.differs(ctx, p) }); err == nil {
				m, err = t.switchApart(ctx, dev)
			}
			stops++
			if pause = stopAfter; errors.Is(err, detach.ErrDied) {
				pause = againAfter // not the fault of files that do not come
			}
			if err == nil {
				return m, nil
			}
		}
		if _, broken := errors.AsType[*detach.Broken](err); broken || try == mostTries || stops == mostStops {
			return nil, err
		}
		t.log.Info("the tree can't leave its source's files yet", "try", try, "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// calm lets what the tree has written arrive at the source, so that the stop does not last as long as the line needs for it.
func (t *Target) calm(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, calmTime, errors.New("the source does not answer"))
	defer cancel()
	return t.fuse.storeCalm(ctx)
}

// stuck is what keeps the tree from being moved, while it runs.
func (t *Target) stuck(dev uint64) ([]string, error) {
	procs, err := t.capsule.TreeProcs()
	if err != nil {
		return nil, err
	}
	defer procs.Close()
	return t.a.free.look(lookBody{MountNS: t.capsule.PID(), Dev: dev, Remote: t.msg.Remote}, procs)
}

func undecided(all []store.Undecided) error {
	if len(all) == 0 {
		return nil
	}
	var r []string
	for _, u := range all {
		r = append(r, u.Path+" "+u.Reason)
	}
	return &detach.Stuck{Reasons: r}
}

// letGoTime is for the kernel to let go of a connection after the last descriptor was closed.
const letGoTime = time.Second

// endFUSE ends the FUSE daemon, if this agent has it: no file of the tree is there any more.
func (t *Target) endFUSE(m *detachedMsg) {
	if m.Connected > 0 {
		t.log.Info("connected sockets with a name keep the entry of the FUSE connection in the kernel until they are closed; nothing is asked of it", "connection", m.Connection, "descriptors", m.Connected)
	} else if t.connection.held(letGoTime) {
		t.log.Error("something still refers to the source's files: it will get errors", "connection", m.Connection)
	}
	t.mu.Lock()
	fuse := t.fuse
	t.fuse = nil
	t.mu.Unlock()
	if fuse != nil {
		fuse.Close()
	}
}

// endHelpers is after the switch: guardian, handler and FUSE daemon go.
// The guardian has a time of its own: one that is not left takes the tree with it, whatever time a source that is silent has cost the files (case "switched/stall
// of 30 s" of e2e's TestFaults).
func (t *Target) endHelpers(m *detachedMsg) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), leaveTime, errors.New("it does not answer"))
	defer cancel()
	err := t.endFiles(ctx, m)
	t.endFUSE(m)
	lctx, lcancel := context.WithTimeoutCause(context.Background(), leaveTime, errors.New("it does not answer"))
	defer lcancel()
	if lerr := t.capsule.Leave(lctx); lerr != nil {
		err = errors.Join(err, lerr)
	}
	if rerr := os.RemoveAll(t.tmp); rerr != nil {
		err = errors.Join(err, fmt.Errorf("remove images: %w", rerr))
	}
	park.At(t.log, "left")
	return err
}

// endFiles finishes the store. A daemon whose agent has died since the switch has ended, with the mount.
func (t *Target) endFiles(ctx context.Context, m *detachedMsg) error {
	if t.fuse == nil {
		if t.msg.RemoveFiles && len(t.msg.With) > 0 {
			t.log.Warn("files are not removed from the source: the agent has died since they came here", "paths", t.msg.With)
			for _, p := range t.msg.With[:min(len(t.msg.With), maxReasons)] {
				m.Kept = append(m.Kept, p+": the agent has died since it came here")
			}
		}
		return store.Finish(t.rec.Dir)
	}
	var err error
	if t.msg.RemoveFiles && len(t.msg.With) > 0 {
		err = t.removeFiles(ctx, m)
	}
	derr := t.fuse.storeDone(ctx)
	if daemonGone(derr) { // the one that settled them: nobody has the store any more
		derr = store.Finish(t.rec.Dir)
	}
	return errors.Join(err, derr)
}

// removeFiles removes what has moved from the source, and tells what stays there and why.
func (t *Target) removeFiles(ctx context.Context, m *detachedMsg) error {
	r, err := t.fuse.storeRemove(ctx, t.msg.With)
	for _, u := range r.Kept {
		t.log.Warn("file is not removed from the source", "path", u.Path, "why", u.Reason)
		m.Kept = append(m.Kept, u.Path+": "+u.Reason)
	}
	if err != nil {
		t.log.Warn("files are not removed from the source", "why", err)
		m.Kept = append(m.Kept, "what else was to be removed: "+err.Error())
	}
	if n := len(m.Kept); n > maxReasons {
		m.Kept = append(m.Kept[:maxReasons], fmt.Sprintf("and %d more, see the agent's log", n-maxReasons))
	}
	m.Removed = r.Files
	t.log.Info("files are removed from the source", "audit", true, "files", r.Files, "kept", len(r.Kept))
	if daemonGone(err) {
		return nil // that is told
	}
	return err
}
