package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/restore"
)

// carrierLink is the agent's end of a carrier, and of those that follow it. A nil one has no streams.
type carrierLink struct {
	carrierWays
	relay    *relayLink
	inherits []restore.Inherit // until the restore
	log      *slog.Logger
	reader   sync.WaitGroup
	leaving  context.Context
	left     context.CancelFunc
	gone     chan struct{} // closed when there is none and no other comes
	answers  chan carrierAnswer
	asked    byte // questions, of who detaches

	mu     sync.Mutex // guards what follows
	sock   *fdpass.Socket
	proc   *parts.Process // nil: another agent has started it
	next   chan struct{}  // closed when another takes the place of this one
	stays  bool
	starts bool
}

// carrierWays are how a carrier is started, and where the guardian is. What is kept is as package restore's Capsule has it.
type carrierWays struct {
	dir   string
	start func(parts.Spec) (*parts.Process, error)
	keep  func(id uint32, f *os.File) error
	drop  func([]uint32)                                         // lets the guardian drop copies
	kept  func(ctx context.Context) (map[uint32]*os.File, error) // nil: no carrier follows one that is killed
}

func newCarrierLink(ways carrierWays, sock *fdpass.Socket, proc *parts.Process, log *slog.Logger) *carrierLink {
	l := &carrierLink{
		carrierWays: ways, sock: sock, proc: proc, relay: newRelayLink(sock), log: log,
		gone: make(chan struct{}), next: make(chan struct{}), answers: make(chan carrierAnswer, 1),
	}
	l.leaving, l.left = context.WithCancel(context.Background())
	return l
}

// startProcess starts a carrier, in a session of its own.
func (w *carrierWays) startProcess() (*fdpass.Socket, *parts.Process, error) {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return nil, nil, fmt.Errorf("start carrier of standard streams: %w", err)
	}
	defer peer.Close()
	proc, err := w.start(parts.Spec{Name: CarrierArg, Dir: w.dir, Files: []*os.File{peer}})
	if err != nil {
		sock.Close()
		return nil, nil, fmt.Errorf("start carrier of standard streams: %w", err)
	}
	return sock, proc, nil
}

// startCarrier starts the first one, and lets it make the ends.
func startCarrier(ways carrierWays, cfg carrierConfig, log *slog.Logger) (*carrierLink, error) {
	if len(cfg.Slots) == 0 {
		return nil, nil
	}
	sock, proc, err := ways.startProcess()
	if err != nil {
		return nil, err
	}
	l := newCarrierLink(ways, sock, proc, log)
	if err := l.open(cfg); err != nil {
		close(l.gone)
		l.close()
		return nil, err
	}
	l.listen()
	return l, nil
}

func (l *carrierLink) open(cfg carrierConfig) error {
	if err := l.sock.Send(append([]byte{carrierOpen}, encode(cfg)...)); err != nil {
		return fmt.Errorf("make standard streams: %w", err)
	}
	var ours map[uint32]*os.File
	defer func() {
		for _, f := range ours {
			f.Close()
		}
	}()
	b, files, err := l.await(l.sock, func(b []byte, files []*os.File) error { return keepNumbered(&ours, b, files) })
	if err != nil {
		return fmt.Errorf("make standard streams: %w", err)
	}
	var m openedMsg
	if err = json.Unmarshal(b[1:], &m); err != nil || b[0] != carrierOpened {
		fdpass.CloseAll(files)
		return fmt.Errorf("make standard streams: %w", errors.Join(errLink, err))
	}
	l.inherits, err = m.inheritsOf(files)
	for id, f := range ours {
		if err == nil {
			err = l.keep(id, f)
		}
	}
	if err != nil {
		l.restored()
		return fmt.Errorf("make standard streams: %w", err)
	}
	return nil
}

// await is the next message that says that something is done.
func (l *carrierLink) await(sock *fdpass.Socket, keep func([]byte, []*os.File) error) ([]byte, []*os.File, error) {
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := sock.Recv(buf)
		if err != nil {
			return nil, nil, err
		}
		switch b := buf[:n]; b[0] {
		case carrierKeep:
			if err := keep(b, files); err != nil {
				return nil, nil, err
			}
		case carrierFailed:
			fdpass.CloseAll(files)
			return nil, nil, errors.New(string(b[1:]))
		default:
			return b, files, nil
		}
	}
}

// findCarrier reaches the one that an agent before this one has started. If it is gone and kept is there, another goes on.
func findCarrier(ways carrierWays, log *slog.Logger) (*carrierLink, error) {
	sock, _, err := fdpass.Reach(ways.dir, carrierSocket)
	l := newCarrierLink(ways, sock, nil, log)
	l.stays = true
	if err != nil {
		if ways.kept == nil {
			return nil, err
		}
		kept, kerr := ways.kept(l.leaving)
		for _, f := range kept {
			f.Close()
		}
		if kerr != nil || kept[keptRecord] == nil {
			return nil, errors.Join(err, kerr) // nothing is carried, or nothing can be
		}
	}
	l.listen()
	return l, nil
}

// listen listens to one carrier after the other.
func (l *carrierLink) listen() {
	l.relay.follows(l.kept != nil)
	l.reader.Go(func() {
		defer close(l.gone)
		pause := carrierPause
		for {
			born := time.Now()
			if sock := l.socket(); sock != nil {
				l.relay.listen(l.log.With("of", "carrier"), l.heard)
				sock.Close()
			}
			if time.Since(born) > carrierLife {
				pause = carrierPause
			}
			if l.leaving.Err() != nil || l.kept == nil || !l.startNext(&pause) {
				return
			}
		}
	})
}

func (l *carrierLink) heard(b []byte, files []*os.File) bool {
	if b[0] == carrierGiven || b[0] == carrierEmptied {
		l.answered(carrierAnswer{append([]byte(nil), b...), files})
		return true
	}
	if b[0] != carrierDrop {
		return false
	}
	fdpass.CloseAll(files)
	var which []uint32
	if err := json.Unmarshal(b[1:], &which); err == nil && len(which) > 0 {
		l.drop(which)
	}
	return true
}

func (l *carrierLink) socket() *fdpass.Socket {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sock
}

func (l *carrierLink) process() *parts.Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.proc
}

// restored closes the tree's ends, which the tree has now.
func (l *carrierLink) restored() {
	if l == nil {
		return
	}
	for _, i := range l.inherits {
		i.File.Close()
	}
	l.inherits = nil
}

// stay lets the carrier outlive this process.
func (l *carrierLink) stay() {
	if l != nil {
		l.say(carrierStay, &l.stays)
	}
}

// start lets the bytes flow; again it changes nothing.
func (l *carrierLink) start() {
	if l != nil {
		l.say(carrierStart, &l.starts)
	}
}

// say tells this carrier and those that follow it.
func (l *carrierLink) say(what byte, said *bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*said = true
	if l.sock != nil {
		_ = l.sock.Send([]byte{what}) // a carrier that is gone: the next is told, or the tree waits
	}
}

// streams is the way to the relay; nil: there is none.
func (l *carrierLink) streams() *relayLink {
	if l == nil {
		return nil
	}
	return l.relay
}

// close ends the carrier.
func (l *carrierLink) close() {
	if l == nil {
		return
	}
	l.left() // no other follows
	if sock := l.socket(); sock != nil {
		_ = sock.Send([]byte{carrierOver}) // it may be gone
	}
	l.leave()
	if proc := l.process(); proc != nil {
		_ = proc.Wait()
	}
}

// leave lets the carrier be, for the next agent.
func (l *carrierLink) leave() {
	if l == nil {
		return
	}
	l.left()
	l.restored()
	l.relay.leave()
	if sock := l.socket(); sock != nil {
		sock.Close()
	}
	l.reader.Wait()
	if sock := l.socket(); sock != nil {
		sock.Close() // one that has come meanwhile
	}
}

// openStdio is called once, before the restore.
func (t *Target) openStdio(ctx context.Context, slots []stdioSlot, s *session) error {
	cfg := carrierConfig{Slots: slots, Name: t.msg.Comm}
	ways := t.carrierWays()
	ways.keep = func(n uint32, f *os.File) error { return t.capsule.Keep(ctx, n, f) }
	st, err := startCarrier(ways, cfg, t.log)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.stdio = st
	t.mu.Unlock()
	s.carry(st.streams())
	return nil
}

// carrierWays are those of a tree that is here.
func (t *Target) carrierWays() carrierWays {
	return carrierWays{dir: t.rec.Dir, start: t.a.free.Start, drop: t.dropStreams, kept: t.capsule.Kept}
}

// dropStreams closes the guardian's copies of ends that are closed for the tree to see it.
func (t *Target) dropStreams(which []uint32) {
	ctx, cancel := context.WithTimeout(context.Background(), dropTime)
	defer cancel()
	for _, n := range which {
		if err := t.capsule.Drop(ctx, n); err != nil {
			t.log.Debug("drop stream", "err", err) // the capsule has ended
		}
	}
}

func (t *Target) stopStdio() {
	if t.keep {
		t.stdio.leave()
	} else {
		t.stdio.close()
	}
}

// flushStdio is after the end of the tree: it returns when the source has passed on all that it wrote, however often the connection is
// lost meanwhile and however slowly it is read there, or when the agent ends.
func (t *Target) flushStdio() {
	if t.stdio == nil {
		return
	}
	for {
		var frames chan frame
		if t.cur != nil {
			frames = t.cur.frames
		}
		select {
		case <-t.stdio.relay.flushed:
			return
		case <-t.stdio.gone:
			t.log.Error("the carrier of standard streams is gone; what the tree wrote last is lost")
			return
		case _, ok := <-frames: // nothing of it matters any more
			if !ok {
				t.adopt(nil)
			}
		case s := <-t.sessions:
			t.adopt(s)
			t.greet(s)
		case <-t.lanes.some:
		case <-t.stop:
			t.log.Error("the agent ends; what the tree wrote last is lost")
			return
		}
	}
}
