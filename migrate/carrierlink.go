package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/restore"
)

// carrierLink is the agent's end of a carrier. A nil one has no streams.
type carrierLink struct {
	sock     *fdpass.Socket
	proc     *parts.Process // nil: another agent has started it
	relay    *relayLink
	inherits []restore.Inherit // until the restore
	log      *slog.Logger
	drop     func([]uint32) // lets the guardian drop copies
	reader   sync.WaitGroup
	gone     chan struct{} // closed when the carrier is
	answers  chan carrierAnswer
	asked    byte // questions, of who detaches
}

// startCarrier starts one, in a session of its own, and lets it make the ends; keep gives our ends to the guardian.
func startCarrier(start func(parts.Spec) (*parts.Process, error), dir string, cfg carrierConfig, keep func(n uint32, f *os.File) error, drop func([]uint32), log *slog.Logger) (*carrierLink, error) {
	if len(cfg.Slots) == 0 {
		return nil, nil
	}
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("start carrier of standard streams: %w", err)
	}
	defer peer.Close()
	proc, err := start(parts.Spec{Name: CarrierArg, Dir: dir, Files: []*os.File{peer}})
	if err != nil {
		sock.Close()
		return nil, fmt.Errorf("start carrier of standard streams: %w", err)
	}
	l := &carrierLink{sock: sock, proc: proc, relay: newRelayLink(sock), log: log, drop: drop, gone: make(chan struct{}), answers: make(chan carrierAnswer, 1)}
	if err := l.open(cfg, keep); err != nil {
		close(l.gone)
		l.close()
		return nil, err
	}
	l.listen()
	return l, nil
}

func (l *carrierLink) open(cfg carrierConfig, keep func(uint32, *os.File) error) error {
	if err := l.sock.Send(append([]byte{carrierOpen}, encode(cfg)...)); err != nil {
		return fmt.Errorf("make standard streams: %w", err)
	}
	buf := make([]byte, fdpass.MaxMessage)
	n, files, err := l.sock.Recv(buf)
	if err != nil {
		return fmt.Errorf("make standard streams: %w", err)
	}
	if buf[0] != carrierOpened {
		fdpass.CloseAll(files)
		return errors.New(string(buf[1:n]))
	}
	var m openedMsg
	err = json.Unmarshal(buf[1:n], &m)
	var ours []*os.File
	if err == nil {
		l.inherits, ours, err = m.inheritsOf(files)
	}
	for i, f := range ours {
		if err == nil {
			err = keep(m.Ours[i], f)
		}
		f.Close()
	}
	if err != nil {
		l.restored()
		return fmt.Errorf("make standard streams: %w", err)
	}
	return nil
}

// findCarrier reaches the one that an agent before this one has started.
func findCarrier(dir string, drop func([]uint32), log *slog.Logger) (*carrierLink, error) {
	sock, _, err := fdpass.Reach(dir, carrierSocket)
	if err != nil {
		return nil, err
	}
	l := &carrierLink{sock: sock, relay: newRelayLink(sock), log: log, drop: drop, gone: make(chan struct{}), answers: make(chan carrierAnswer, 1)}
	l.listen()
	return l, nil
}

func (l *carrierLink) listen() {
	l.reader.Go(func() {
		defer close(l.gone)
		l.relay.listen(l.log.With("of", "carrier"), func(b []byte, files []*os.File) bool {
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
		})
	})
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
		_ = l.sock.Send([]byte{carrierStay}) // a carrier that is gone: the tree waits
	}
}

// start lets the bytes flow; again it changes nothing.
func (l *carrierLink) start() {
	if l != nil {
		_ = l.sock.Send([]byte{carrierStart}) // a carrier that is gone: the tree waits
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
	_ = l.sock.Send([]byte{carrierOver}) // it may be gone
	l.leave()
	if l.proc != nil {
		_ = l.proc.Wait()
	}
}

// leave lets the carrier be, for the next agent.
func (l *carrierLink) leave() {
	if l == nil {
		return
	}
	l.restored()
	l.relay.leave()
	l.sock.Close()
	l.reader.Wait()
}

// openStdio is called once, before the restore.
func (t *Target) openStdio(ctx context.Context, slots []stdioSlot, s *session) error {
	cfg := carrierConfig{Slots: slots, Name: t.msg.Comm}
	st, err := startCarrier(t.a.free.Start, t.rec.Dir, cfg, func(n uint32, f *os.File) error { return t.capsule.Keep(ctx, n, f) }, t.dropStreams, t.log)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.stdio = st
	t.mu.Unlock()
	s.carry(st.streams())
	return nil
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
