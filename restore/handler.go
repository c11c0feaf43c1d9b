package restore

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/lograte"
	"github.com/lazymig/lazymig/internal/urgent"
	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/wire"
)

// handlerConfig is the first message to a handler.
type handlerConfig struct {
	ID     wire.ID
	Token  wire.Token
	TLSDir string
	Allow  []string
	Since  time.Time
	Debug  bool

	Connections, MostConnections int // bulk lanes, see HandlerOptions
}

const (
	guardianFD       = 4
	handshakeTimeout = 10 * time.Second
	maxGreetings     = 16 // handshakes at a time
	// lostPause keeps a peer that fails each handshake from being asked in a tight loop.
	lostPause = 250 * time.Millisecond
)

// handler is the process that brings bytes. It knows nothing that its successor would need.
type handler struct {
	log    *slog.Logger
	cfg    handlerConfig
	keys   *keys.Keys
	ctl    *fdpass.Socket // agent; may go away
	link   *fdpass.Socket // guardian; its end is ours
	mem    []byte
	client *pagesrv.Client
	lanes  map[wire.Lane]*laneQueue
	lobby  wire.Lobby
	bulk   sync.Once     // done by the first bulk want
	came   atomic.Uint64 // bytes over bulk lanes
}

// HandlerMain is the hidden subcommand HandlerArg. It never returns.
func HandlerMain() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGPIPE) // a terminal's signals are the agent's business
	if err := handlerMain(); err != nil {
		fmt.Fprintln(os.Stderr, "lazymig handler:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// confineSelf leaves the handler, which reads from the network, no more than it needs: its threads' priority, memory that stays, and the certificates, which are
// read again at each handshake. It makes no socket, file or process: all comes from the agent.
//
// Where memory is short others go first, and what the handler has touched once is there: a thread of the tree that waits for a page would wait for the handler's own, too.
// What Go reserves is not touched, so MCL_ONFAULT takes no memory more (mlockall(2)).
func confineSelf() error {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000\n"), 0) // allowed with CAP_SYS_RESOURCE only, which is given up next
	if err := confine.Stage(confine.Limits{Keep: []int{unix.CAP_SYS_NICE, unix.CAP_DAC_READ_SEARCH, unix.CAP_IPC_LOCK}}); err != nil {
		return err
	}
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT) // not allowed: it is as fast until memory is short
	if err := confine.Syscalls(confine.Runtime(os.Getpid())...); err != nil {
		return fmt.Errorf("confine handler: %w", err)
	}
	return nil
}

func handlerMain() error {
	if err := confineSelf(); err != nil {
		return err
	}
	urgent.Share()
	h := &handler{log: slog.New(lograte.New(slog.NewTextHandler(os.Stderr, nil))).With("process", "handler"), lobby: wire.Lobby{Max: maxGreetings}}
	unix.CloseOnExec(controlFD)
	unix.CloseOnExec(guardianFD)
	var err error
	if h.ctl, err = fdpass.New(os.NewFile(controlFD, "control")); err != nil {
		return err
	}
	if h.link, err = fdpass.NewInThread(os.NewFile(guardianFD, "link")); err != nil {
		return err
	}
	r := newReceiver(h.ctl)
	m, files, err := r.next()
	if err != nil {
		return err
	}
	fdpass.CloseAll(files)
	if m.Op != opConfig {
		return errMessage
	}
	if err := json.Unmarshal(m.Body, &h.cfg); err != nil {
		return fmt.Errorf("decode configuration: %w", err)
	}
	if h.cfg.Debug {
		h.log = slog.New(lograte.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))).With("process", "handler")
	}
	k, err := keys.Load(h.cfg.TLSDir)
	if err != nil {
		return err
	}
	h.keys = k.Since(h.cfg.Since)
	if err := h.meet(); err != nil {
		return err
	}
	h.client = pagesrv.NewClient(pagesrv.ClientOptions{Log: h.log, Lost: h.lost})
	queues := []*laneQueue{newLaneQueue(), newLaneQueue()}
	h.lanes = map[wire.Lane]*laneQueue{wire.LaneUrgent: queues[0], wire.LaneBulk: queues[1]}
	for n := 1; n < max(h.cfg.Connections, h.cfg.MostConnections); n++ {
		h.lanes[wire.BulkLane(n)] = queues[1]
	}
	var wg sync.WaitGroup
	for _, q := range queues {
		wg.Go(func() { h.ask(q) })
	}
	go h.control(r) // ends with the process
	err = h.wants()
	for _, q := range queues {
		q.close()
	}
	cerr := h.client.Close()
	wg.Wait()
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
		err = nil // the guardian has ended or has another handler
	}
	return errors.Join(err, cerr)
}

// meet takes the guardian's slots.
func (h *handler) meet() error {
	buf := make([]byte, 256)
	n, files, err := h.link.Recv(buf)
	if err != nil {
		return err
	}
	defer fdpass.CloseAll(files)
	m, err := parseLink(buf[:n])
	if err != nil || m.kind != linkWelcome || m.slots != slotCount || len(files) != 1 {
		return errors.Join(errMessage, err)
	}
	h.mem, err = mapSlots(int(files[0].Fd()), slotCount)
	return err
}

// wants takes what the guardian wants until its end.
func (h *handler) wants() error {
	defer urgent.Thread()()
	buf := make([]byte, 4096)
	for {
		n, files, err := h.link.Recv(buf)
		if err != nil {
			return err
		}
		fdpass.CloseAll(files)
		m, err := parseLink(buf[:n])
		if err != nil {
			return err
		}
		if m.kind != linkSurvey && (m.kind != linkWant || m.slot >= slotCount) {
			return errMessage
		}
		lane := wire.LaneBulk
		if m.want.Urgent || m.want.Prefetch {
			lane = wire.LaneUrgent
		} else {
			h.bulk.Do(h.grow)
		}
		// All of it goes out from here, a change of goroutines less: frames are small, and not even those of all slots and
		// surveys fill a socket's buffer, so a lane that is slow delays nothing.
		q := h.lanes[lane]
		if v, ok := q.direct(m.slotWant); ok {
			h.send(q, m.slotWant, v)
		}
	}
}

// grow begins to look for how many bulk lanes are worth having.
func (h *handler) grow() {
	q := h.lanes[wire.LaneBulk]
	m := &moreLanes{
		first: h.cfg.Connections, most: max(h.cfg.Connections, h.cfg.MostConnections), bytes: h.came.Load, busy: func() bool { return q.flying() > 0 },
		ask: func(lane wire.Lane) {
			if err := sendMessage(h.ctl, message{Op: opLaneMore, Lane: lane}, nil); err != nil {
				h.log.Info("tell agent", "err", err)
			}
		},
	}
	if m.most > 1 {
		go func() { // ends with the process
			t := time.NewTicker(growEvery)
			defer t.Stop()
			m.run(t.C)
		}()
	}
}

// ask sends wants that came while no lane of their kind was there.
func (h *handler) ask(q *laneQueue) {
	for {
		w, v, ok := q.pop()
		if !ok {
			return
		}
		h.send(q, w, v)
	}
}

func (h *handler) send(q *laneQueue, w slotWant, v via) {
	if w.end != 0 {
		h.survey(q, w, v)
	} else {
		h.fetch(q, w, v)
	}
}

func (h *handler) survey(q *laneQueue, w slotWant, v via) {
	done := func(l pagesrv.Layout, err error) {
		if errors.Is(err, pagesrv.ErrLaneLost) {
			q.again(w, v)
			return
		}
		q.answered(v)
		if err != nil {
			h.tell(failed(w, err))
			return
		}
		h.tell(found(w, l))
	}
	req := pagesrv.LayoutRequest{Task: w.want.Task, Start: w.want.Addr, End: w.end}
	if err := h.client.Layout(v.lane, req, done); err != nil {
		done(pagesrv.Layout{}, err)
	}
}

func (h *handler) fetch(q *laneQueue, w slotWant, v via) {
	req := pagesrv.Request{Task: w.want.Task, Addr: w.want.Addr, Pages: w.want.Pages}
	done := func(r pagesrv.Reply, err error) {
		if errors.Is(err, pagesrv.ErrLaneLost) {
			q.again(w, v)
			return
		}
		if err != nil {
			q.answered(v)
			h.log.Warn("fetch pages", "task", w.want.Task, "addr", w.want.Addr, "err", err)
			h.tell(failed(w, err))
			return
		}
		h.tell(brought(w, r.Runs, r.Bytes)) // a thread may wait for it
		q.answered(v)
		if v.lane.Bulk() {
			h.came.Add(uint64(r.Bytes))
		}
	}
	var err error
	switch dst := slotOf(h.mem, w.slot); {
	case w.want.Prefetch:
		err = h.client.Prefetch(req, dst, done)
	case len(w.want.More) > 0:
		reqs := []pagesrv.Request{req}
		for _, s := range w.want.More {
			reqs = append(reqs, pagesrv.Request{Task: req.Task, Addr: s.Addr, Pages: s.Pages})
		}
		err = h.client.FetchParts(v.lane, reqs, dst, done)
	default:
		err = h.client.Fetch(v.lane, req, dst, done)
	}
	if err != nil {
		done(pagesrv.Reply{}, err)
	}
}

func (h *handler) tell(b []byte) {
	if err := h.link.Send(b); err != nil {
		h.log.Debug("tell guardian", "err", err) // wants sees its end
	}
}

// control takes connections from the agent. When the agent ends, the lanes that there are serve on.
func (h *handler) control(r *receiver) {
	for {
		m, files, err := r.next()
		if err != nil {
			h.log.Info("agent is gone", "err", err)
			return
		}
		if m.Op != opLane || len(files) != 1 || h.lanes[m.Lane] == nil {
			fdpass.CloseAll(files)
			h.log.Error("agent", "err", errMessage)
			continue
		}
		go h.greet(m.Lane, files[0], m.Clear) // bounded by its deadline
	}
}

// greet makes a lane of a connection whose preamble has been read.
func (h *handler) greet(lane wire.Lane, f *os.File, clear bool) {
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		h.lost(lane, fmt.Errorf("take connection: %w", err))
		return
	}
	if tc, ok := nc.(*net.TCPConn); ok { // FileConn has set keepalive to the runtime's default, which takes minutes
		if err := wire.NoticeSilence(tc); err != nil {
			h.log.Warn("lane", "lane", lane, "err", err)
		}
	}
	if clear {
		h.up(lane, wire.NewClear(nc))
		return
	}
	leave := h.lobby.Enter(nc)
	c, err := h.hello(lane, nc)
	leave()
	if err != nil {
		nc.Close()
		if h.client.Attached(lane) { // somebody's attempt; the lane is up, and its end will be told
			h.log.Info("connection refused", "lane", lane, "err", err)
			return
		}
		h.lost(lane, err)
		return
	}
	h.up(lane, c)
}

// up uses a connection of the right peer.
func (h *handler) up(lane wire.Lane, c *wire.Conn) {
	h.client.Attach(lane, c)
	h.lanes[lane].up(lane)
	h.log.Debug("lane is up", "lane", lane)
}

func (h *handler) hello(lane wire.Lane, nc net.Conn) (*wire.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	t := tls.Server(wire.Buffer(nc), h.keys.Server(h.cfg.Allow...))
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS of %v: %w", lane, err)
	}
	c := wire.NewConn(t)
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	if _, err := wire.AcceptHello(c, wire.Hello{Lane: lane, ID: h.cfg.ID, Token: h.cfg.Token}); err != nil {
		return nil, fmt.Errorf("hello of %v: %w", lane, err)
	}
	return c, c.SetDeadline(time.Time{})
}

// lost tells the agent that a lane has to be dialed. What was in flight waits in its queue.
func (h *handler) lost(lane wire.Lane, err error) {
	h.log.Info("lane is lost", "lane", lane, "err", err)
	time.AfterFunc(lostPause, func() {
		if err := sendMessage(h.ctl, message{Op: opLaneLost, Lane: lane, Err: textOf(err)}, nil); err != nil {
			h.log.Info("tell agent", "err", err)
		}
	})
}
