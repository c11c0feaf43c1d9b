package remotefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/budget"
	"github.com/lazymig/lazymig/wire"
)

const (
	maxInFlight = 64 // requests at work for one connection
	credThreads = 6
)

// ServerOptions tell what is exported.
type ServerOptions struct {
	Root   *os.File     // O_PATH directory: the tree's root. The server keeps a descriptor of its own
	Groups []uint32     // supplementary groups of the tree
	Log    *slog.Logger // nil: silent
	// Writers tells which of some files processes of this host can write beside this one, and who. Nil: it is not known.
	Writers func([]FileID) (map[FileID]string, error)
	Budget  *budget.Budget // for file contents; nil: no limit
}

// Stats counts what has been served.
type Stats struct {
	Operations uint64 // requests
	Waited     uint64 // those of them that an operation of the tree waited for: round trips
	Bytes      uint64 // file contents, both ways
	Files      uint64 // distinct regular files opened
	Nodes      int    // looked up now
	Handles    int    // open now
}

// Server serves one tree's files, on any number of connections.
type Server struct {
	log     *slog.Logger
	proc    int // O_PATH of /proc/self/fd
	tab     table
	cred    *credPool
	granted atomic.Bool

	ops, waited, bytes, files atomic.Uint64

	holdMu sync.Mutex
	held   []*os.File
	closed bool
	conns  map[*wire.Conn]struct{}
	wg     sync.WaitGroup // Serve calls

	sess  session
	seed  seeding
	chain chain

	short chan struct{} // those that wait for a descriptor

	writers func([]FileID) (map[FileID]string, error)
	budget  *budget.Budget

	quiet sync.RWMutex // held by each request at work; by SetJournal, which waits for them
}

// NewServer makes a server; changes are refused until Grant.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Root == nil {
		return nil, errors.New("remotefs: no root")
	}
	s, err := newServer(o)
	if err != nil {
		return nil, err
	}
	root, err := unix.Openat(int(o.Root.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, _, err = s.tab.add(root)
	}
	if err != nil {
		_ = s.Close() // nothing is in it
		return nil, fmt.Errorf("open exported root: %w", err)
	}
	return s, nil
}

// newServer makes one without any node.
func newServer(o ServerOptions) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	raiseFiles()
	proc, err := unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /proc/self/fd: %w", err)
	}
	s := &Server{log: o.Log, proc: proc, writers: o.Writers, budget: o.Budget, conns: map[*wire.Conn]struct{}{}, short: make(chan struct{}, mostShort), seed: seeding{frozen: make(chan struct{}), closed: make(chan struct{}), opened: map[wire.FileOpened]int{}}, tab: table{
		nodes: map[uint64]*node{}, byKey: map[key]*node{}, handles: map[uint64]*handle{}, devs: map[uint64]*fsInfo{},
	}}
	if s.cred, err = newCredPool(credThreads, o.Groups); err != nil {
		_ = unix.Close(proc)
		return nil, err
	}
	return s, nil
}

// raiseFiles asks for as many descriptors as the kernel allows: each node is one.
func raiseFiles() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return
	}
	if want := uint64(1 << 20); l.Max < want {
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: want}) == nil {
			return
		}
	}
	l.Cur = l.Max
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
}

// Grant lets changes through from now on: the source will never run the tree again.
func (s *Server) Grant() { s.granted.Store(true) }

// Hold keeps copies of the frozen tree's descriptors until Close, so that its flocks and unlinked files live on.
func (s *Server) Hold(files []*os.File) {
	s.holdMu.Lock()
	defer s.holdMu.Unlock()
	if s.closed {
		closeFiles(files)
		return
	}
	s.held = append(s.held, files...)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// Stats tells what has been served so far.
func (s *Server) Stats() Stats {
	s.tab.mu.Lock()
	defer s.tab.mu.Unlock()
	return Stats{
		Operations: s.ops.Load(), Waited: s.waited.Load(), Bytes: s.bytes.Load(), Files: s.files.Load(),
		Nodes: len(s.tab.nodes), Handles: len(s.tab.handles),
	}
}

// Close ends all connections and lets go of everything. May be called more than once.
func (s *Server) Close() error {
	s.holdMu.Lock()
	if s.closed {
		s.holdMu.Unlock()
		return nil
	}
	s.closed = true
	for c := range s.conns {
		hangUp(c)
	}
	held := s.held
	s.held = nil
	s.holdMu.Unlock()
	close(s.seed.closed)
	s.wg.Wait()
	s.cred.close()
	s.tab.journal.end()
	s.tab.closeAll()
	closeFiles(held)
	return unix.Close(s.proc)
}

// Serve answers the requests of one connection until it or ctx ends, or a newer one of the same client takes its place; it closes c.
// The end of the connection is no error.
func (s *Server) Serve(ctx context.Context, c *wire.Conn) error {
	s.holdMu.Lock()
	if s.closed {
		s.holdMu.Unlock()
		_ = c.Close()
		return net.ErrClosed
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.holdMu.Unlock()
	l := &serverLink{c: c, gone: make(chan struct{})}
	stop := context.AfterFunc(ctx, l.end)
	var wg sync.WaitGroup
	defer func() {
		stop()
		l.end() // a worker that sends to a dead peer wakes, and one that waits for another's answer
		wg.Wait()
		s.holdMu.Lock()
		delete(s.conns, c)
		s.holdMu.Unlock()
		s.wg.Done()
	}()
	if err := s.serve(l, &wg); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && ctx.Err() == nil && !l.isGone() {
		return err
	}
	return ctx.Err()
}

func (s *Server) serve(l *serverLink, wg *sync.WaitGroup) error {
	if err := s.attach(l); err != nil {
		return err
	}
	slots := make(chan struct{}, maxInFlight)
	for {
		h, p, err := l.c.Recv()
		if err != nil {
			return fmt.Errorf("read file request: %w", err)
		}
		slots <- struct{}{}
		j, err := s.take(l, h, p)
		if err != nil {
			return fmt.Errorf("file request %d: %w", h.Type, err)
		}
		s.order(j)
		wait := wg
		if j.op.frozen { // it may outlast the connection: its answer is kept
			wait = &s.wg
		}
		wait.Go(func() {
			if s.waitsAside(j) {
				<-slots
				s.awaitTurn(j)
			} else {
				defer func() { <-slots }()
			}
			if err := s.handle(j); err != nil && !l.isGone() {
				s.log.Warn("end files connection", "type", h.Type, "err", err)
				l.end()
			}
		})
	}
}

// request is one operation at work.
type request struct {
	node *node
	who  wire.FileCaller
	d    *wire.Decoder
	e    wire.Encoder
	raw  []byte // sent after e
	free func() // after the reply
	paid bool   // from the budget

	id      uint64
	begun   *witness // another server has begun this very request and did not come to an end
	opening *handle  // of opOpenAs
	mine    bool     // that this request opens
	effects effects
}

// errProtocol marks what no right client sends; it ends the connection.
var errProtocol = errors.New("malformed request")

// handle does one request. An error ends the connection.
func (s *Server) handle(j *job) error {
	h, c := j.h, j.link.c
	if h.Type == wire.MsgPing {
		return c.Send(wire.MsgPong, 0, h.ID)
	}
	if j.again { // it has been done, or is being done
		select {
		case <-j.kept.done:
		case <-j.link.gone:
			return nil
		}
		return j.kept.send(c, h.ID)
	}
	if j.op.frozen {
		s.awaitFrozen(j)
	}
	if j.op.bulk {
		s.awaitBudget(j)
	}
	if !s.awaitOpened(j) {
		return nil
	}
	if j.after != nil {
		<-j.after // that never waits for this one, nor for the connection
	}
	s.quiet.RLock()
	r := &request{d: j.d, id: h.ID, begun: j.begun, paid: j.op.bulk, opening: j.opening, mine: j.mine}
	a := answer{typ: h.Type + 1}
	var err error
	if j.op.fn == nil {
		err = fmt.Errorf("message %d: %w", h.Type, unix.ENOSYS)
	} else {
		s.ops.Add(1)
		if !j.op.aside {
			s.waited.Add(1)
		}
		err = s.run(j.op, r)
	}
	if r.free != nil {
		defer r.free()
	}
	switch {
	case errors.Is(err, errProtocol):
		a.err = err
	case err != nil:
		if wire.ErrnoOf(err) == 0 {
			err = fmt.Errorf("%w: %w", unix.EIO, err)
		}
		a.typ, a.head = wire.MsgError, wire.MarshalError(err)
	default:
		a.head, a.rest = r.e.B, r.raw
	}
	if j.kept != nil {
		s.settle(j, r, a)
	}
	s.quiet.RUnlock()
	return a.send(c, h.ID)
}

func (s *Server) run(op op, r *request) error {
	id := r.d.U64()
	r.who = wire.FileCaller{UID: r.d.U32(), GID: r.d.U32()}
	if err := r.d.Err(); err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	if op.changes && !s.granted.Load() {
		return fmt.Errorf("%s before the grant: %w", op.name, unix.EROFS)
	}
	if !op.gone {
		n, err := s.tab.get(id)
		if err != nil {
			return fmt.Errorf("%s: node %d: %w", op.name, id, err)
		}
		defer s.tab.put(n)
		r.node = n
	}
	if err := op.fn(s, r); err != nil {
		return fmt.Errorf("%s: %w", op.name, err)
	}
	return nil
}

// end checks that the whole request has been read and is right.
func (r *request) end() error {
	if err := r.d.End(); err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	return nil
}

// path is a way to n's file that follows nothing but /proc's link to a descriptor.
func (s *Server) path(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// reopen opens the very file behind fd again.
func (s *Server) reopen(fd, flags int) (int, error) {
	return s.newFD(func() (int, error) { return unix.Openat(s.proc, strconv.Itoa(fd), flags|unix.O_CLOEXEC, 0) })
}

func retry(fn func() (int, error)) (int, error) {
	for {
		n, err := fn()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
