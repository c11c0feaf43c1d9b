package pagesrv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"

	"github.com/lazymig/lazymig/internal/budget"
	"github.com/lazymig/lazymig/internal/pagemap"
	"github.com/lazymig/lazymig/internal/urgent"
	"github.com/lazymig/lazymig/wire"
)

// Task names a process of the frozen tree.
type Task struct {
	ID  uint32 // in the tree's PID namespace, as in the images and in requests
	PID int    // as this process sees it
}

// ServerOptions are the options of NewServer. Only Tasks has to be set.
type ServerOptions struct {
	Tasks   []Task
	Objects []Object       // shared memory; the files become the server's, also when it fails
	Log     *slog.Logger   // default: none
	Workers int            // requests of one connection that are answered at a time; default 4 urgent, 2 bulk
	Budget  *budget.Budget // for pages; nil: no limit

	Compress string // bulk answers, for a peer that knows how: CompressAuto (also if empty), CompressNone, CompressS2, CompressZstd
}

// chunkPages is how much a bulk request reads before it looks for urgent ones again.
const chunkPages = 16

// Server reads the tree's memory for any number of connections.
type Server struct {
	opts    ServerOptions
	log     *slog.Logger
	tasks   map[uint32]*task // fixed
	shared  sharedObjects
	gate    *gate
	packer  *packer
	chooser *chooser
	legacy  bool // no PAGEMAP_SCAN

	urgent, bulk laneStats

	mu     sync.Mutex
	conns  map[*wire.Conn]struct{}
	done   chan struct{} // closed by Close
	closed bool
	wg     sync.WaitGroup // one for each Serve

	hookChunk func(wire.Lane, Request) // tests: before each chunk is read
}

// NewServer pins the tasks. Each must exist and have its ID among its numbers, else it fails.
// It may be called before the freeze; memory is looked at from the first request on.
func NewServer(o ServerOptions) (*Server, error) {
	s := &Server{
		chooser: newChooser(o.Compress),
		opts:    o, log: o.Log,
		tasks: make(map[uint32]*task, len(o.Tasks)),
		conns: make(map[*wire.Conn]struct{}), done: make(chan struct{}),
		gate: newGate(), legacy: !pagemap.Probe().Scan,
	}
	s.shared.take(o.Objects)
	var err error
	if s.packer, err = packers(); err == nil {
		err = CheckCompress(o.Compress)
	}
	if err != nil {
		s.closeTasks()
		return nil, fmt.Errorf("prepare to compress pages: %w", err)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, t := range o.Tasks {
		if s.tasks[t.ID] != nil || IsObject(t.ID) {
			s.closeTasks()
			return nil, fmt.Errorf("serve task %d twice: %w", t.ID, syscall.EEXIST)
		}
		p, err := openTask(t.ID, t.PID)
		if err != nil {
			s.closeTasks()
			return nil, err
		}
		s.tasks[t.ID] = p
	}
	return s, nil
}

// Refresh opens every task's memory again. It has to be called after the freeze if anything was asked for before; it also
// saves the first request of each task the time for it.
func (s *Server) Refresh() error {
	for _, t := range s.tasks {
		if err := t.refresh(true); err != nil {
			return err
		}
	}
	return nil
}

// Serve answers the requests of one connection, hellos said, until it ends, and closes it. The peer's orderly end is no error.
func (s *Server) Serve(ctx context.Context, c *wire.Conn, lane wire.Lane) error {
	defer c.Close()
	if lane != wire.LaneUrgent && !lane.Bulk() {
		return fmt.Errorf("serve pages on %v: %w", lane, syscall.EINVAL)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("serve pages: %w", ErrClosed)
	}
	s.wg.Add(1)
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.wg.Done()
	}()
	noDelay(c.Net())
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()

	n := s.opts.Workers
	if n <= 0 {
		if n = 2; lane == wire.LaneUrgent {
			n = 4
		}
	}
	if err := c.WaitInThread(); err != nil {
		return fmt.Errorf("serve pages on %v: %w", lane, err)
	}
	sv := &serving{s: s, c: c, lane: lane, stats: s.stats(lane)}
	var wg sync.WaitGroup
	stopped := sv.startAhead()
	for range n {
		wg.Go(sv.work)
	}
	wg.Wait()
	close(sv.ahead)
	<-stopped
	err := sv.err
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, net.ErrClosed) && s.isClosed():
		err = ErrClosed
	case errors.Is(err, io.EOF):
		return nil
	}
	return fmt.Errorf("serve pages on %v: %w", lane, err)
}

// serving is one connection being served.
type serving struct {
	s     *Server
	c     *wire.Conn
	lane  wire.Lane
	stats *laneStats
	ahead chan message // requests that nobody waits for, see prefetch.go

	sending sync.Mutex // held by the one who sends a bulk answer

	mu  sync.Mutex // held by the one who reads
	err error      // under mu: why it ends
}

// work takes turns with its siblings: read a request, let the next one read, answer.
func (sv *serving) work() {
	if sv.lane == wire.LaneUrgent {
		defer urgent.Thread()()
	}
	var buf [requestSize + (MaxParts-1)*partSize]byte // holds a layoutSize too
	for sv.turn(buf[:]) {
	}
}

// turn ends when its request is answered and somebody else may have the turn. It says false when the connection has ended.
func (sv *serving) turn(buf []byte) bool {
	sv.mu.Lock()
	for sv.err == nil {
		h, p, err := sv.next(buf)
		if err != nil {
			sv.endLocked(err)
			break
		}
		if sv.putOff(h, p) {
			continue
		}
		// A thread that is alone with the urgent requests keeps its turn: handing it on costs more than the answer.
		if sv.lane == wire.LaneUrgent && !sv.c.Buffered() {
			if err := sv.answer(h, p); err != nil {
				sv.endLocked(err)
			}
			continue
		}
		sv.mu.Unlock()
		if err := sv.answer(h, p); err != nil {
			_ = sv.c.Close() // who reads holds the lock
			sv.mu.Lock()
			sv.endLocked(err)
			break
		}
		return true
	}
	sv.mu.Unlock()
	return false
}

// endLocked ends the connection. The first reason stays.
func (sv *serving) endLocked(err error) {
	if sv.err == nil {
		sv.err = err
	}
	_ = sv.c.Close()
}

func (sv *serving) next(buf []byte) (wire.Header, []byte, error) {
	h, err := sv.c.ReadHeader()
	if err != nil {
		return h, nil, err
	}
	ok := false
	switch h.Type {
	case wire.MsgPages:
		ok = fitsRequest(h.Length, sv.lane.Bulk())
	case wire.MsgLayout:
		ok = h.Length == layoutSize
	case wire.MsgPing, wire.MsgPong:
		ok = h.Length == 0
	}
	if !ok {
		return h, nil, fmt.Errorf("message %d of %d bytes: %w", h.Type, h.Length, ErrProtocol)
	}
	p, err := sv.c.ReadPayload(h, buf)
	return h, p, err
}

// answer handles one message. An error means that the connection is of no more use.
func (sv *serving) answer(h wire.Header, p []byte) error {
	switch h.Type {
	case wire.MsgPing:
		return sv.c.Send(wire.MsgPong, 0, h.ID)
	case wire.MsgPong:
		return nil
	case wire.MsgLayout:
		return sv.layout(h.ID, p)
	}
	waited := sv.lane == wire.LaneUrgent && !prefetches(h) // a thread waits for it
	if waited {
		sv.s.gate.enter()
		defer sv.s.gate.leave()
	}
	r := readings.Get().(*reading)
	defer readings.Put(r)
	var err error
	if r.parts, err = parseParts(p, r.parts); err != nil {
		return err
	}
	sv.stats.requests.Add(1)
	if err := sv.readParts(r, waited); err != nil {
		return sv.fail(h.ID, err)
	}
	parts := r.result()
	for _, run := range r.runs {
		switch run.Kind {
		case KindData:
			sv.stats.data.Add(uint64(run.Pages))
		case KindZero:
			sv.stats.zero.Add(uint64(run.Pages))
		case KindError:
			sv.s.log.Warn("page could not be read", "task", r.parts[0].Task, "addr", r.parts[0].Addr, "ranges", len(r.parts), "errno", run.Errno)
		}
	}
	return sv.send(h, r, parts, waited)
}

func (sv *serving) fail(id uint64, err error) error {
	sv.stats.errors.Add(1)
	sv.s.log.Warn("request failed", "lane", sv.lane, "err", err)
	return sv.c.Send(wire.MsgError, 0, id, wire.MarshalError(err))
}

// readParts reads the ranges of a request one after the other.
func (sv *serving) readParts(r *reading, waited bool) error {
	pages, err := checkParts(r.parts)
	if err != nil {
		return err
	}
	behind := uint32(0)
	for _, p := range r.parts {
		r.look(p, behind)
		if err := sv.read(r, waited); err != nil {
			return err
		}
		behind += p.Pages
	}
	r.lookAtAll(pages)
	return nil
}

func (sv *serving) read(r *reading, waited bool) error {
	if waited {
		return sv.s.read(r, MaxPages, func() { sv.s.chunk(sv.lane, r.req) })
	}
	return sv.s.read(r, chunkPages, func() {
		sv.s.chunk(sv.lane, r.req)
		sv.s.gate.stand()
	})
}

func (s *Server) read(r *reading, chunk int, before func()) error {
	if IsObject(r.req.Task) {
		return s.shared.read(r, chunk, before)
	}
	t, err := s.task(r.req.Task)
	if err != nil {
		return err
	}
	return t.read(r, s.legacy, chunk, before)
}

func (s *Server) chunk(lane wire.Lane, r Request) {
	if s.hookChunk != nil {
		s.hookChunk(lane, r)
	}
}

func (s *Server) task(id uint32) (*task, error) {
	if t := s.tasks[id]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("task %d is not served: %w", id, syscall.ENOENT)
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Close ends all connections, waits for their Serve and lets go of the tasks. May be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		close(s.done)
	}
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.closeTasks()
	return nil
}

func (s *Server) closeTasks() {
	for _, t := range s.tasks {
		t.close()
	}
	s.shared.close()
}

// DropObjects lets go of the shared memory: all of it has been fetched.
func (s *Server) DropObjects() { s.shared.close() }

// noDelay sends small frames at once; TLS connections are looked through.
func noDelay(c net.Conn) {
	for {
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true)
	}
}
