package migrate

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/wire"
)

// AgentOptions are those of `lazymig agent`. Listen, StateDir, TLSDir, CRIUPath, CRIUPref and Log must be set.
type AgentOptions struct {
	Listen      string // ADDR:PORT
	StateDir    string
	TLSDir      string
	AheadMemory uint64 // most bytes that are kept of what is copied ahead of one migration; 0: what is free decides
	Clear       bool   // take pages and files without TLS from those who ask for it
	// StreamWrites lets trees go on before what they write to files at the source has arrived there (package lazyfs, stream.go).
	StreamWrites bool
	ImagesOnDisk bool     // beside the records, not on a tmpfs
	Allow        []string // names of certificates that may connect; none = all of this CA
	Starter      *Starter // does what this process may not; nil: it may
	CRIUPath     string   // as criu.Find says
	CRIUPref     string
	Log          *slog.Logger
}

const (
	maxPending    = 256              // connections whose peers are not known yet
	agentPatience = 10 * time.Second // for a preamble, for a handshake, and for each message before a migration: a right peer sends pings
)

// Agent is the target's side: it accepts connections and runs one Target a migration.
type Agent struct {
	opt      AgentOptions
	keys     *keys.Keys
	ln       net.Listener
	free     free
	patience time.Duration

	mu      sync.Mutex
	targets map[wire.ID]*Target
	closing bool

	wg sync.WaitGroup
}

// NewAgent listens.
func NewAgent(opt AgentOptions) (*Agent, error) {
	k, err := keys.Load(opt.TLSDir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opt.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	ln, err := net.Listen("tcp", opt.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for migrations: %w", err)
	}
	a := &Agent{opt: opt, keys: k, ln: ln, free: freeHere{stateDir: opt.StateDir, criu: opt.CRIUPath}, patience: agentPatience, targets: map[wire.ID]*Target{}}
	if opt.Starter != nil {
		a.free = opt.Starter
	}
	return a, nil
}

// Addr is where it listens.
func (a *Agent) Addr() net.Addr { return a.ln.Addr() }

// Serve accepts connections until ctx ends. Trees that have not been granted are given back to their source then; trees that run
// here are killed with the agent's helpers only if they have ended: else they are left as they are, waiting.
func (a *Agent) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { a.ln.Close() })
	defer stop()
	a.pickUp(ctx)
	a.wg.Go(func() { a.sweep(ctx) })
	lobby := &wire.Lobby{Max: maxPending}
	var err error
	for {
		var nc net.Conn
		nc, err = a.ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				err = nil
				break
			}
			if errors.Is(err, net.ErrClosed) {
				break
			}
			a.opt.Log.Error("accept connection", "err", err) // out of descriptors, mostly: go on when there are some
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		leave := lobby.Enter(nc)
		a.wg.Go(func() {
			defer leave()
			a.route(ctx, nc.(*net.TCPConn), leave)
		})
	}
	a.mu.Lock()
	a.closing = true
	all := make([]*Target, 0, len(a.targets))
	for _, t := range a.targets {
		all = append(all, t)
	}
	a.mu.Unlock()
	for _, t := range all {
		t.agentEnds()
	}
	a.wg.Wait()
	return err
}

// route reads the preamble and hands the connection to whoever serves its lane. known is to be called when the peer has shown its certificate.
func (a *Agent) route(ctx context.Context, nc *net.TCPConn, known func()) {
	log := a.opt.Log.With("peer", nc.RemoteAddr().String())
	_ = nc.SetDeadline(time.Now().Add(a.patience))
	p, err := wire.ReadPreamble(nc)
	if err != nil {
		log.Warn("connection refused", "err", err)
		nc.Close()
		return
	}
	_ = nc.SetDeadline(time.Time{})
	if err := wire.NoticeSilence(nc); err != nil {
		log.Warn("connection", "err", err)
	}
	if p.Lane == wire.LaneControl {
		a.control(ctx, nc, p.ID, known, log)
		return
	}
	defer nc.Close()
	t := a.target(p.ID)
	if p.Clear && !a.provesItself(nc, p, t, log) {
		return
	}
	if t == nil {
		log.Warn("lane of an unknown migration", "lane", p.Lane, "id", p.ID)
		return
	}
	f, err := nc.File()
	if err == nil {
		err = t.giveLane(p.Lane, f, p.Clear)
	}
	if err == nil {
		return
	}
	log.Error("pass connection on", "lane", p.Lane, "err", err)
	if errors.Is(err, errNoLane) {
		return
	}
	nc.Close() // the source believes that it was taken
	select {   // out of descriptors, mostly
	case <-time.After(passAgain):
		t.ask(p.Lane)
	case <-ctx.Done():
	}
}

// passAgain is when a connection that could not be passed on is asked for again.
const passAgain = 200 * time.Millisecond

func (a *Agent) target(id wire.ID) *Target {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.targets[id]
}

func (a *Agent) drop(t *Target) {
	a.mu.Lock()
	delete(a.targets, t.id)
	a.mu.Unlock()
}

// control serves one control connection: a question about this host, a new migration, or one that goes on.
func (a *Agent) control(ctx context.Context, nc net.Conn, id wire.ID, known func(), log *slog.Logger) {
	k := a.keys
	if t := a.target(id); t != nil { // it will have to show the token, too
		k = k.Since(t.began)
	}
	c, tc, err := acceptWithin(a.patience, nc, k.Server(a.opt.Allow...), wire.Hello{Lane: wire.LaneControl, ID: id, Features: a.features()})
	if err != nil {
		log.Warn("control connection refused", "err", err)
		nc.Close()
		return
	}
	defer c.Close()
	known()
	peer := keys.Names(tc.ConnectionState().PeerCertificates[0])
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	a.converse(ctx, c, id, peer, log.With("names", peer))
}

// converse answers what comes before a migration, until one begins or goes on, or the peer is silent.
func (a *Agent) converse(ctx context.Context, c *wire.Conn, id wire.ID, peer []string, log *slog.Logger) {
	for {
		_ = c.SetDeadline(time.Now().Add(a.patience)) // fails only when closed, and then so does the read
		h, p, err := c.Recv()
		if err != nil {
			return
		}
		switch h.Type {
		case wire.MsgPing:
			err = c.Send(wire.MsgPong, 0, h.ID)
		case wire.MsgClock:
			err = answerClock(c, h, p)
		case wire.MsgCheck:
			f := whileAlive(c, func() preflight.Facts { return a.facts(ctx) })
			err = c.Send(wire.MsgCheckAns, 0, h.ID, encode(f))
		case wire.MsgPrepare:
			_ = c.SetDeadline(time.Time{}) // the session sets its own
			a.begin(ctx, c, id, peer, p, log)
			return
		case wire.MsgState:
			_ = c.SetDeadline(time.Time{}) // as above
			a.goOn(c, id, p, log)
			return
		case wire.MsgAbort: // before anything was begun
			return
		default:
			err = fmt.Errorf("message %d before a migration has begun", h.Type)
			_ = c.Send(wire.MsgError, 0, h.ID, wire.MarshalError(err)) // it ends either way
		}
		if err != nil {
			log.Warn("control connection", "err", err)
			return
		}
	}
}

// whileAlive does what takes its time: the peer hears meanwhile that there is somebody, or it would give up on a host that is only busy.
func whileAlive[T any](c *wire.Conn, do func() T) T {
	done := make(chan T, 1)
	go func() { done <- do() }()
	beat := time.NewTicker(pingEvery)
	defer beat.Stop()
	for {
		select {
		case v := <-done:
			return v
		case <-beat.C:
			_ = c.Send(wire.MsgPong, 0, 0) // who reads next sees the end
		}
	}
}

func (a *Agent) facts(ctx context.Context) preflight.Facts {
	f := a.free.facts(ctx)
	f.AheadRoom, f.ImagesOnDisk = a.aheadRoom(), a.opt.ImagesOnDisk
	return f
}

// aheadRoom is how many bytes are kept of what is copied ahead. They become the tree's one by one, so that they take no memory beside its own.
func (a *Agent) aheadRoom() uint64 {
	free := preflight.MemoryFree() / 4 * 3
	if a.opt.AheadMemory > 0 {
		free = min(free, a.opt.AheadMemory)
	}
	return free
}

func answerClock(c *wire.Conn, h wire.Header, p []byte) error {
	var m clockMsg
	if err := decode(p, &m); err != nil {
		return err
	}
	m.Here = time.Now().UnixNano()
	return c.Send(wire.MsgClock, 0, h.ID, encode(m))
}

// begin makes a Target and drives it until the tree has ended or the migration has been given up.
func (a *Agent) begin(ctx context.Context, c *wire.Conn, id wire.ID, peer []string, p []byte, log *slog.Logger) {
	var m prepareMsg
	refuse := func(err error) {
		log.Error("migration refused", "id", id, "err", err)
		_ = c.Send(wire.MsgError, 0, 0, wire.MarshalError(err)) // the source sees the connection end if this is lost
	}
	if err := decode(p, &m); err != nil {
		refuse(err)
		return
	}
	if m.Cleartext && !a.opt.Clear {
		refuse(errNoCleartext)
		return
	}
	a.mu.Lock()
	if a.closing || a.targets[id] != nil {
		a.mu.Unlock()
		refuse(fmt.Errorf("migration %v: the agent is ending, or has it already", id))
		return
	}
	t := newTarget(a, id, m, log.With("id", id))
	a.targets[id] = t
	a.mu.Unlock()
	defer a.drop(t)
	log.Info("migration begins", "audit", true, "id", id, "tree", m.Comm, "from", m.Host, "names", peer, "threads", len(m.PIDs), "bytes", m.Memory, "cleartext", m.Cleartext)
	end := t.run(ctx, c)
	log.Info("migration ends", "audit", true, "id", id, "state", t.State(), "err", end)
}

// goOn gives a new control connection to a migration that lost its old one, if the peer knows the token: others of the same CA must not
// say "granted". Unknown: says so; the source decides nothing by it.
func (a *Agent) goOn(c *wire.Conn, id wire.ID, p []byte, log *slog.Logger) {
	t := a.target(id)
	var m stateMsg
	if err := decode(p, &m); err != nil || t == nil {
		s := stateMsg{Note: "this agent has no such migration"}
		if known, err := List(a.opt.StateDir); err == nil {
			for _, k := range known {
				if k.ID == id && k.Last().Side == SideTarget {
					s.State = sweepOne(k, a.free, a.opt.Log)
				}
			}
		}
		_ = c.Send(wire.MsgState, 0, 0, encode(s)) // a lost answer is asked for again
		return
	}
	if subtle.ConstantTimeCompare(m.Token[:], t.msg.Token[:]) != 1 {
		log.Warn("control connection refused: the peer does not know the token of the migration", "id", id)
		return
	}
	t.reconnect(c, m)
}
