package pagesrv

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/lazymig/lazymig/internal/urgent"
	"github.com/lazymig/lazymig/wire"
)

// MaxInFlight bounds the requests of one lane that have no answer yet, so that writing them never waits for reading answers.
const MaxInFlight = 8192

// ClientOptions are the options of NewClient.
type ClientOptions struct {
	Log  *slog.Logger           // default: none
	Lost func(wire.Lane, error) // called when a lane has gone, after its requests have failed; not when Attach or Close took it away
}

// Client asks for pages. Lanes may come and go.
type Client struct {
	opts ClientOptions
	log  *slog.Logger
	id   atomic.Uint64
	wg   sync.WaitGroup // the lanes' readers

	mu     sync.Mutex
	lanes  map[wire.Lane]*lane
	closed bool
}

// lane is one connection while it lasts.
type lane struct {
	kind wire.Lane
	c    *wire.Conn

	mu       sync.Mutex
	calls    map[uint64]*call
	err      error // why it has ended
	runs     []Run // the reader's, as the rest
	unpacker unpacker
	packed   []byte
	head     [4 + MaxPages*runSize]byte
}

// call is a request without an answer.
type call struct {
	pages  uint32
	dst    []byte
	done   func(Reply, error)
	layout func(Layout, error) // instead of done
	laying LayoutRequest
}

func (c *call) fail(err error) {
	if c.layout != nil {
		c.layout(Layout{}, err)
		return
	}
	c.done(Reply{}, err)
}

// NewClient makes a client without lanes.
func NewClient(o ClientOptions) *Client {
	c := &Client{opts: o, log: o.Log, lanes: make(map[wire.Lane]*lane)}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Attach takes over a connection, hellos said. One that it replaces is closed, and what was in flight there fails with ErrLaneLost.
func (c *Client) Attach(kind wire.Lane, conn *wire.Conn) {
	l := &lane{kind: kind, c: conn, calls: make(map[uint64]*call)}
	noDelay(conn.Net())
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		_ = conn.Close()
		return
	}
	old := c.lanes[kind]
	c.lanes[kind] = l
	c.wg.Go(func() { c.read(l) })
	c.mu.Unlock()
	if old != nil {
		old.end(fmt.Errorf("%w: replaced", ErrLaneLost))
	}
}

// Attached says that the lane has a connection; when that ends, Lost is called.
func (c *Client) Attached(kind wire.Lane) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lanes[kind] != nil
}

// Fetch asks for pages; the answer's data bytes go straight to dst, which belongs to the client until done is called.
// It doesn't wait for the answer. If it fails, done is not called; else done is called once, on the lane's reader, maybe before Fetch returns.
// done must not wait for other answers, nor call Close.
func (c *Client) Fetch(kind wire.Lane, req Request, dst []byte, done func(Reply, error)) error {
	var flags uint16
	if kind.Bulk() {
		flags = uint16(packings)
	}
	return c.fetch(kind, flags, []Request{req}, dst, done)
}

// FetchParts is Fetch on a bulk lane of several ranges of one task, MaxPages together: one request, and an answer that covers them in this order, as if they were one. The
// source must have said that it knows how.
func (c *Client) FetchParts(kind wire.Lane, parts []Request, dst []byte, done func(Reply, error)) error {
	if !kind.Bulk() {
		return fmt.Errorf("fetch %d ranges on %v: %w", len(parts), kind, syscall.EINVAL)
	}
	return c.fetch(kind, uint16(packings), parts, dst, done)
}

// Prefetch is Fetch on the urgent lane of pages that nobody waits for yet: the source answers those first that somebody waits for.
func (c *Client) Prefetch(req Request, dst []byte, done func(Reply, error)) error {
	return c.fetch(wire.LaneUrgent, wire.FlagPrefetch, []Request{req}, dst, done)
}

func (c *Client) fetch(kind wire.Lane, flags uint16, parts []Request, dst []byte, done func(Reply, error)) error {
	pages, err := checkParts(parts)
	if err != nil {
		return err
	}
	if len(dst) < int(pages)*PageSize {
		return fmt.Errorf("fetch %d pages into %d bytes: %w", pages, len(dst), syscall.EINVAL)
	}
	b := make([]byte, 0, requestSize+(len(parts)-1)*partSize)
	return c.send(kind, wire.MsgPages, flags, appendParts(b, parts), &call{pages: pages, dst: dst, done: done})
}

func (c *Client) send(kind wire.Lane, t wire.Type, flags uint16, payload []byte, cl *call) error {
	c.mu.Lock()
	l, closed := c.lanes[kind], c.closed
	c.mu.Unlock()
	switch {
	case closed:
		return fmt.Errorf("ask on %v: %w: %w", kind, ErrLaneLost, ErrClosed)
	case l == nil:
		return fmt.Errorf("ask on %v: %w: not attached", kind, ErrLaneLost)
	}
	id := c.id.Add(1)
	l.mu.Lock()
	switch {
	case l.err != nil:
		l.mu.Unlock()
		return fmt.Errorf("ask on %v: %w", kind, l.err)
	case len(l.calls) >= MaxInFlight:
		l.mu.Unlock()
		return fmt.Errorf("ask on %v: %d in flight: %w", kind, MaxInFlight, syscall.EAGAIN)
	}
	l.calls[id] = cl
	l.mu.Unlock()
	if err := l.c.Send(t, flags, id, payload); err != nil {
		// Half a frame may be on its way, so the lane has ended. Whoever takes the call out of the map tells of it.
		l.end(fmt.Errorf("%w: %w", ErrLaneLost, err))
		if l.take(id) != nil {
			return fmt.Errorf("ask on %v: %w: %w", kind, ErrLaneLost, err)
		}
	}
	return nil
}

func (l *lane) take(id uint64) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	cl := l.calls[id]
	delete(l.calls, id)
	return cl
}

// end makes the lane refuse requests and its reader end. The first reason stays.
func (l *lane) end(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	_ = l.c.Close()
}

// read is the lane's reader, from Attach to its end.
func (c *Client) read(l *lane) {
	if l.kind == wire.LaneUrgent {
		defer urgent.Thread()()
	}
	defer l.unpacker.close()
	err := l.c.WaitInThread()
	for err == nil {
		err = c.one(l)
	}
	l.end(fmt.Errorf("%w: %w", ErrLaneLost, err))
	l.mu.Lock()
	err = l.err
	left := l.calls
	l.calls = nil // nothing is put in any more: l.err is set
	l.mu.Unlock()
	for _, cl := range left {
		cl.fail(err)
	}
	c.mu.Lock()
	mine := c.lanes[l.kind] == l && !c.closed
	if mine {
		delete(c.lanes, l.kind)
	}
	c.mu.Unlock()
	if mine {
		c.log.Warn("lane lost", "lane", l.kind, "err", err)
		if c.opts.Lost != nil {
			c.opts.Lost(l.kind, err)
		}
	}
}

const maxErrorFrame = 8192

// one handles one message.
func (c *Client) one(l *lane) error {
	h, err := l.c.ReadHeader()
	if err != nil {
		return err
	}
	switch {
	case h.Type == wire.MsgPing && h.Length == 0:
		return l.c.Send(wire.MsgPong, 0, h.ID)
	case h.Type == wire.MsgPong && h.Length == 0:
		return nil
	}
	cl := l.take(h.ID)
	if cl == nil {
		return fmt.Errorf("message %d for request %d, which is not in flight: %w", h.Type, h.ID, ErrProtocol)
	}
	switch {
	case h.Type == wire.MsgPaged && cl.done != nil:
		var rep Reply
		if rep, err = l.pages(h, cl); err == nil {
			cl.done(rep, nil)
		}
	case h.Type == wire.MsgLaid && cl.layout != nil:
		var lay Layout
		if lay, err = l.laid(h, cl); err == nil {
			cl.layout(lay, nil)
		}
	case h.Type == wire.MsgError && h.Length <= maxErrorFrame:
		var p []byte
		if p, err = l.c.ReadPayload(h, nil); err == nil {
			cl.fail(failure(wire.ParseError(p)))
		}
	default:
		err = fmt.Errorf("message %d of %d bytes: %w", h.Type, h.Length, ErrProtocol)
	}
	if err != nil {
		cl.fail(fmt.Errorf("%w: %w", ErrLaneLost, err))
	}
	return err
}

// failure gives the source's errors their names back.
func failure(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%w: %w", ErrSourceLost, err)
	}
	return err
}

// pages reads the answer to a Fetch.
func (l *lane) pages(h wire.Header, cl *call) (Reply, error) {
	if h.Length < 4 {
		return Reply{}, fmt.Errorf("decode pages: %w: %w", ErrProtocol, wire.ErrShort)
	}
	if err := l.c.ReadFull(l.head[:4]); err != nil {
		return Reply{}, err
	}
	n := wire.NewDecoder(l.head[:4]).U32()
	if n < 1 || n > cl.pages {
		return Reply{}, fmt.Errorf("decode pages: %w: %d runs for %d pages", ErrProtocol, n, cl.pages)
	}
	size := int(n) * runSize
	if int(h.Length) < 4+size {
		return Reply{}, fmt.Errorf("decode pages: %w: %w", ErrProtocol, wire.ErrShort)
	}
	if err := l.c.ReadFull(l.head[:size]); err != nil {
		return Reply{}, err
	}
	runs, data, err := parseRuns(l.head[:size], cl.pages, l.runs)
	if err != nil {
		return Reply{}, err
	}
	l.runs = runs
	bytes, how := int(h.Length)-4-size, packing(h.Flags)
	if how != unpacked {
		if !l.kind.Bulk() || bytes >= data {
			return Reply{}, fmt.Errorf("decode pages: %w: packing %d, %d bytes for %d", ErrProtocol, how, bytes, data)
		}
		l.packed = slices.Grow(l.packed[:0], bytes)[:bytes]
		if err := l.c.ReadFull(l.packed); err != nil {
			return Reply{}, err
		}
		if err := l.unpacker.unpack(how, cl.dst[:data], l.packed); err != nil {
			return Reply{}, err
		}
		return Reply{Runs: runs, Bytes: data}, nil
	}
	if bytes != data {
		return Reply{}, fmt.Errorf("decode pages: %w: %d bytes where the runs say %d", ErrProtocol, bytes, data)
	}
	if err := l.c.ReadFull(cl.dst[:data]); err != nil {
		return Reply{}, err
	}
	return Reply{Runs: runs, Bytes: data}, nil
}

// Close ends all lanes; what is in flight fails with ErrLaneLost. It waits for the readers. May be called more than once.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	lanes := slices.Collect(maps.Values(c.lanes))
	c.mu.Unlock()
	for _, l := range lanes {
		l.end(fmt.Errorf("%w: %w", ErrLaneLost, ErrClosed))
	}
	c.wg.Wait()
	return nil
}
