package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/wire"
)

// HandlerOptions of a capsule's handler.
type HandlerOptions struct {
	TLSDir string
	Token  wire.Token
	Since  time.Time // when the migration began, see keys.Since
	Allow  []string  // names, one of which the source's certificate must have; empty: any of the CA
	// Connections is how many bulk lanes there are from the first bulk want on, MostConnections how many there may be if more of them bring more. 0: one.
	Connections, MostConnections int
	// OnLaneLost is called, on a goroutine of its own, when the urgent or a bulk lane has to be dialed (again), for the
	// first time at the start. It is not called again for a lane before that was given.
	OnLaneLost func(wire.Lane)
}

// Handler keeps one handler process running.
type Handler struct {
	c *Capsule
	o HandlerOptions

	stopping context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu    sync.Mutex
	sock  *fdpass.Socket // nil while there is none
	proc  *parts.Process
	asked map[wire.Lane]bool
}

// A handler that lived shorter than longLife is followed by the next after a pause, twice as long each time.
const (
	longLife  = 5 * time.Second
	pauseMin  = 10 * time.Millisecond
	pauseMost = 100 * time.Millisecond
)

// ErrNoHandler says that a connection came while there was no handler; the next one asks for another.
var ErrNoHandler = errors.New("no handler now")

// StartHandler starts the capsule's handler and respawns it when it dies, until the capsule ends.
func (c *Capsule) StartHandler(ctx context.Context, o HandlerOptions) (*Handler, error) {
	h := &Handler{c: c, o: o, asked: make(map[wire.Lane]bool)}
	h.stopping, h.cancel = context.WithCancel(context.Background())
	c.mu.Lock()
	if c.handler != nil || c.closed {
		c.mu.Unlock()
		h.cancel()
		return nil, errors.New("start handler: the capsule has one, or is closed")
	}
	c.handler = h
	c.mu.Unlock()
	proc, sock, err := h.spawn(ctx)
	if err != nil {
		c.mu.Lock()
		c.handler = nil
		c.mu.Unlock()
		h.cancel()
		return nil, fmt.Errorf("start handler: %w", err)
	}
	h.wg.Go(func() { h.run(proc, sock) })
	return h, nil
}

// spawn starts one handler process and joins it with the guardian.
func (h *Handler) spawn(ctx context.Context) (*parts.Process, *fdpass.Socket, error) {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer peer.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		sock.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	theirs, guardians := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	defer theirs.Close()
	defer guardians.Close()
	proc, err := h.c.o.Free.Start(parts.Spec{Name: HandlerArg, Files: []*os.File{peer, theirs}})
	if err != nil {
		sock.Close()
		return nil, nil, err
	}
	cfg := handlerConfig{
		ID: h.c.o.ID, Token: h.o.Token, TLSDir: h.o.TLSDir, Allow: h.o.Allow, Since: h.o.Since, Connections: h.o.Connections, MostConnections: h.o.MostConnections, Debug: h.c.log.Enabled(ctx, slog.LevelDebug),
	}
	err = sendMessage(sock, message{Op: opConfig}, cfg)
	if err == nil {
		_, _, err = h.c.call(ctx, opAttach, nil, guardians)
	}
	if err != nil {
		sock.Close()
		return nil, nil, errors.Join(err, reapKilled(proc))
	}
	h.mu.Lock()
	h.sock, h.proc = sock, proc
	clear(h.asked)
	h.mu.Unlock()
	h.lost(wire.LaneUrgent)
	h.lost(wire.LaneBulk)
	return proc, sock, nil
}

func reapKilled(proc *parts.Process) error {
	if err := proc.Kill(); err != nil {
		return fmt.Errorf("kill handler: %w", err)
	}
	_ = proc.Wait() // how it ended is known
	return nil
}

// run listens to a handler until it dies, then starts the next.
func (h *Handler) run(proc *parts.Process, sock *fdpass.Socket) {
	pause := pauseMin
	for {
		born := time.Now()
		h.listen(sock)
		h.mu.Lock()
		h.sock, h.proc = nil, nil
		h.mu.Unlock()
		sock.Close()
		if err := reapKilled(proc); err != nil {
			h.c.log.Error("handler", "err", err)
		}
		for proc = nil; proc == nil; {
			if h.ended() {
				return
			}
			h.c.events.put(Event{Kind: EventHandlerLost})
			h.c.log.Warn("handler is lost; starting the next", "state", "the tree waits for pages meanwhile")
			if time.Since(born) > longLife {
				pause = pauseMin
			}
			select {
			case <-time.After(pause):
			case <-h.stopping.Done():
				return
			case <-h.c.dead:
				return
			}
			pause = min(2*pause, pauseMost)
			var err error
			if proc, sock, err = h.spawn(h.stopping); err != nil {
				h.c.log.Error("start handler", "err", err)
			}
		}
	}
}

func (h *Handler) ended() bool {
	h.c.mu.Lock()
	killing := h.c.killing || h.c.leaving
	h.c.mu.Unlock()
	select {
	case <-h.c.dead:
		return true
	default:
		return killing || h.stopping.Err() != nil
	}
}

func (h *Handler) listen(sock *fdpass.Socket) {
	stop := context.AfterFunc(h.stopping, func() { sock.Close() })
	defer stop()
	r := newReceiver(sock)
	for {
		m, files, err := r.next()
		if err != nil {
			return
		}
		fdpass.CloseAll(files)
		switch {
		case m.Op == opLaneLost && (m.Lane == wire.LaneUrgent || m.Lane.Bulk()):
			h.c.log.Warn("lane is lost", "lane", m.Lane, "err", m.Err)
			h.lost(m.Lane)
		case m.Op == opLaneMore && m.Lane.Bulk():
			h.c.log.Debug("one more lane", "lane", m.Lane)
			h.lost(m.Lane)
		}
	}
}

// lost asks for the lane unless that has been done.
func (h *Handler) lost(lane wire.Lane) {
	h.mu.Lock()
	again := h.asked[lane]
	h.asked[lane] = true
	h.mu.Unlock()
	if !again && h.o.OnLaneLost != nil && !h.ended() {
		go h.o.OnLaneLost(lane) // the caller's: may take as long as it likes
	}
}

// GiveLane passes a connection whose preamble has been read; the handler does the rest. With clear that is nothing: it has no TLS, and its peer
// has proven itself. It takes over conn.
func (h *Handler) GiveLane(lane wire.Lane, conn *os.File, clear bool) error {
	defer conn.Close()
	if lane != wire.LaneUrgent && !lane.Bulk() {
		return fmt.Errorf("give %v to the handler: %w", lane, unix.EINVAL)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sock == nil {
		return fmt.Errorf("give %v: %w", lane, ErrNoHandler)
	}
	h.asked[lane] = false
	if err := sendMessage(h.sock, message{Op: opLane, Lane: lane, Clear: clear}, nil, conn); err != nil {
		return fmt.Errorf("give %v to the handler: %w", lane, err)
	}
	return nil
}

// PID of the handler process that there is now, or 0.
func (h *Handler) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.proc == nil {
		return 0
	}
	return h.proc.PID
}

// stop ends the handler and waits. May be called more than once.
func (h *Handler) stop() {
	h.cancel()
	h.wg.Wait()
}
