package remotefs

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/lazymig/lazymig/wire"
)

// ErrLost says that the client has ended before the reply: whether the operation was done is unknown.
var ErrLost = errors.New("connection to the source's files lost")

var errClosed = errors.New("client is closed")

// ClientOptions may be left zero.
type ClientOptions struct {
	// Lost is told that a connection has ended by itself, once for each, in a goroutine of its own that Close waits for. Calls wait then
	// until Attach brings another connection. Nil: the end of the connection is the client's end.
	Lost func(err error)
	Log  *slog.Logger // nil: silent

	// Session names the client to the server; zero: it makes a name up. A client with the Session of one that has died, and a greater
	// Life, takes over what that one had: nodes, handles, and the answers that it may not have got (TakeOver).
	Session [wire.FileSessionSize]byte
	Life    uint32 // below MaxLife
}

// MaxLife bounds ClientOptions.Life.
const MaxLife = 1 << 23

// Client asks a Server. Calls may be made at the same time; each is one frame out and one back. It outlives its connections: each
// request is done once, see the package's description.
type Client struct {
	log     *slog.Logger
	lost    func(error)
	session [wire.FileSessionSize]byte
	life    uint32
	window  chan struct{} // holds one for each request without an answer
	numbers chan struct{} // holds one for each numbered request that is not settled
	done    chan struct{}
	told    chan struct{} // the server has told what it keeps
	wg      sync.WaitGroup

	attachMu sync.Mutex // one Attach at a time; before mu
	sendMu   sync.Mutex // requests go out in the order of their IDs, so that the server knows what is acknowledged; before mu

	mu      sync.Mutex
	pending map[uint64]*call // by ID, without an answer
	open    map[uint64]bool  // numbers that are answered and not settled
	inherit map[uint64]bool  // IDs whose answers the server keeps for the client before; nil until told
	next    uint64           // counts requests
	later   []*call          // told by OpenAs and not sent yet: before any other request, and when one is settled
	acks    []uint64         // settled and not yet acknowledged: the next request tells
	link    *clientLink      // nil: there is no connection
	direct  *clientLink      // callers may send; nil also while older requests are sent again
	err     error            // why it ended
}

// call is one request. Its parts and dst are the caller's, and in use until ready is closed or the client has ended.
type call struct {
	id    uint64
	seq   uint64 // the order in which they are sent
	typ   wire.Type
	parts [][]byte
	dst   []byte // the reply goes here if it fits

	reply []byte
	err   error
	ready chan struct{}
}

// NewClient takes over c.
func NewClient(conn *wire.Conn, o ClientOptions) *Client {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		log: o.Log, lost: o.Lost, session: o.Session, life: o.Life, window: make(chan struct{}, maxUnanswered), numbers: make(chan struct{}, maxUnanswered),
		done: make(chan struct{}), told: make(chan struct{}), pending: map[uint64]*call{}, open: map[uint64]bool{},
	}
	if c.session == ([wire.FileSessionSize]byte{}) {
		_, _ = rand.Read(c.session[:]) // never fails, see crypto/rand
	}
	_ = c.Attach(conn) // fails only after an end
	return c
}

// Done is closed when the client has ended, by Close or because a connection is not to be replaced; all calls fail with ErrLost then.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err tells why the client ended.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Waiting is how many requests have no answer yet.
func (c *Client) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending) + len(c.later)
}

// Close ends the client, connected or not; calls that wait fail with ErrLost. May be called more than once.
func (c *Client) Close() error {
	c.fail(errClosed)
	c.wg.Wait()
	return nil
}

// fail ends the client for good.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	l := c.link
	c.direct = nil
	if l == nil {
		close(c.done)
	}
	c.mu.Unlock()
	if l != nil {
		l.kill() // its goroutine does the rest
	}
}

// head begins a request.
func head(node uint64, who wire.FileCaller) *wire.Encoder {
	e := &wire.Encoder{B: make([]byte, 0, 128)}
	e.U64(node)
	e.U32(who.UID)
	e.U32(who.GID)
	return e
}

// send makes a request and sends it, or leaves that to the next connection. It waits while too many are without an answer.
func (c *Client) send(ctx context.Context, number uint64, t wire.Type, dst []byte, parts ...[]byte) (*call, error) {
	n := 2 + 8*wire.MaxFileAcks // acks at most
	for _, p := range parts {
		n += len(p)
	}
	if n > wire.MaxPayload {
		return nil, fmt.Errorf("request %d of %d bytes: %w", t, n, wire.ErrLong)
	}
	numbered := number != 0 && ops[t].once
	if numbered { // before the window: who waits for an answer needs no number any more
		if err := c.enter(ctx, c.numbers); err != nil {
			return nil, err
		}
	}
	if err := c.enter(ctx, c.window); err != nil {
		return nil, err
	}
	p := &call{typ: t, dst: dst, parts: parts, ready: make(chan struct{})}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if err := c.sendLater(); err != nil {
		return nil, err
	}
	return p, c.put(p, number, numbered)
}

// sendLater sends what was left for later, with sendMu.
func (c *Client) sendLater() error {
	c.mu.Lock()
	list := c.later
	c.later = nil
	c.mu.Unlock()
	for _, p := range list {
		if err := c.put(p, 0, false); err != nil {
			return err
		}
	}
	return nil
}

// put gives a request its ID and sends it, or leaves that to the next connection. With sendMu.
func (c *Client) put(p *call, number uint64, numbered bool) error {
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	c.next++
	p.seq = c.next
	if p.id = number; !numbered || c.pending[number] != nil || c.open[number] { // a number's second operation is its caller's risk
		p.id = ownID | uint64(c.life)<<40 | c.next
	}
	if numbered && p.id != number {
		<-c.numbers
	}
	acks := c.acks[:min(len(c.acks), wire.MaxFileAcks)]
	ack := make([]byte, 2, 2+8*len(acks))
	binary.BigEndian.PutUint16(ack, uint16(len(acks)))
	for _, id := range acks {
		ack = binary.BigEndian.AppendUint64(ack, id)
	}
	c.acks = c.acks[:copy(c.acks, c.acks[len(acks):])]
	p.parts = append(append(make([][]byte, 0, 3), ack), p.parts...)
	c.pending[p.id] = p
	l := c.direct
	c.mu.Unlock()
	if l == nil {
		return nil
	}
	if err := l.c.Send(p.typ, 0, p.id, p.parts...); err != nil {
		l.kill() // the reader tells; the request goes out again with the next connection
	}
	return nil
}

// enter takes a place; at the end of the client there is no need to give it back.
func (c *Client) enter(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	default:
	}
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrLost, ctx.Err())
	case <-c.done:
		return fmt.Errorf("%w: %w", ErrLost, c.Err())
	}
}

// ownID marks IDs that the client has made up, beside those that are the numbers of callers (wire.FileCaller).
const ownID = 1 << 63

// do sends a request and waits for its reply. A call that ctx ends may still be done by the server; dst and parts must then not be used again.
func (c *Client) do(ctx context.Context, number uint64, t wire.Type, dst []byte, parts ...[]byte) ([]byte, error) {
	p, err := c.send(ctx, number, t, dst, parts...)
	if err != nil {
		return nil, err
	}
	return c.reply(ctx, p)
}

// reply waits for the reply to a request.
func (c *Client) reply(ctx context.Context, p *call) ([]byte, error) {
	select {
	case <-p.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrLost, ctx.Err())
	case <-c.done:
		select {
		case <-p.ready: // it came before the end
		default:
			return nil, fmt.Errorf("%w: %w", ErrLost, c.Err())
		}
	}
	return p.reply, p.err
}

// call is do for replies that are decoded; get takes the fields.
func (c *Client) call(ctx context.Context, number uint64, t wire.Type, e *wire.Encoder, get func(*wire.Decoder)) error {
	b, err := c.do(ctx, number, t, nil, e.B)
	if err != nil {
		return err
	}
	d := wire.NewDecoder(b)
	if get != nil {
		get(d)
	}
	if err := d.End(); err != nil {
		err = fmt.Errorf("decode reply %d: %w", t+1, err)
		c.fail(err)
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

// tell sends a request whose reply nobody waits for.
func (c *Client) tell(t wire.Type, e *wire.Encoder) {
	_, _ = c.send(context.Background(), 0, t, nil, e.B) // fails only when the client has ended
}

// tellLater is tell, but it goes out with the next request, before it, or at the next Settled.
func (c *Client) tellLater(t wire.Type, e *wire.Encoder) {
	if c.enter(context.Background(), c.window) != nil {
		return // the client has ended
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.later = append(c.later, &call{typ: t, parts: [][]byte{e.B}, ready: make(chan struct{})})
}
