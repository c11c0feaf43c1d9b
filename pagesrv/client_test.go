package pagesrv

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// fetchAll sends n requests and yields their errors as they come.
func fetchAll(t *testing.T, c *Client, lane wire.Lane, req Request, n int) <-chan error {
	t.Helper()
	ch := make(chan error, n)
	for range n {
		if err := c.Fetch(lane, req, make([]byte, int(req.Pages)*PageSize), func(_ Reply, err error) { ch <- err }); err != nil {
			t.Fatal(err)
		}
	}
	return ch
}

// TestUrgentPassesBulk parks bulk in the midst of 100 requests: urgent ones are answered all the same.
func TestUrgentPassesBulk(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	s := newServer(t, Task{uint32(p.pid), p.pid})
	park, parked := make(chan struct{}), make(chan struct{}, 1000)
	s.hookChunk = func(l wire.Lane, _ Request) {
		if l == wire.LaneBulk {
			parked <- struct{}{}
			<-park
		}
	}
	c := newClient(t)
	attach(t, s, c, wire.LaneUrgent)
	attach(t, s, c, wire.LaneBulk)
	req := Request{uint32(p.pid), p.area(t, "plain").start, 64}
	bulk := fetchAll(t, c, wire.LaneBulk, req, 100)
	await(t, "bulk request being read", parked)
	for range 100 {
		checkPages(t, c, wire.LaneUrgent, p, p.area(t, "plain"), 100, 16)
	}
	if n := s.Stats().Bulk.DataPages; n != 0 {
		t.Errorf("%d bulk pages got out", n)
	}
	close(park)
	for range 100 {
		if err := await(t, "bulk answer", bulk); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUrgentPassesPrefetch parks the first of many prefetching requests: those that somebody waits for are answered on the same lane all the same, and
// then the others.
func TestUrgentPassesPrefetch(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	s := newServer(t, Task{uint32(p.pid), p.pid})
	plain := p.area(t, "plain")
	ahead := Request{uint32(p.pid), plain.start, 16}
	park, parked := make(chan struct{}), make(chan struct{}, 1000)
	s.hookChunk = func(_ wire.Lane, r Request) {
		if r == ahead {
			parked <- struct{}{}
			<-park
		}
	}
	c := newClient(t)
	attach(t, s, c, wire.LaneUrgent)
	const n = maxAhead // one is answered, as many wait, and none is too many
	done := make(chan error, n)
	for range n {
		if err := c.Prefetch(ahead, make([]byte, int(ahead.Pages)*PageSize), func(_ Reply, err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "prefetching request being read", parked)
	for range 100 {
		checkPages(t, c, wire.LaneUrgent, p, plain, 100, 8)
	}
	if len(done) > 0 {
		t.Error("a parked request was answered")
	}
	close(park)
	for range n {
		if err := await(t, "answer", done); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPrefetchFlood asks for more ahead than waits: all of it is answered.
func TestPrefetchFlood(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	s := newServer(t, Task{uint32(p.pid), p.pid})
	c := newClient(t)
	attach(t, s, c, wire.LaneUrgent)
	const n = 20 * maxAhead
	done := make(chan error, n)
	for range n {
		req := Request{uint32(p.pid), p.area(t, "plain").start, 4}
		if err := c.Prefetch(req, make([]byte, int(req.Pages)*PageSize), func(_ Reply, err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
	}
	for range n {
		if err := await(t, "answer", done); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBulkStandsBack parks an urgent request: bulk does not begin another chunk until it is done.
func TestBulkStandsBack(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	s := newServer(t, Task{uint32(p.pid), p.pid})
	var urgentDone atomic.Bool
	park, parked, bulkCame := make(chan struct{}), make(chan struct{}, 1), make(chan struct{}, 100)
	s.hookChunk = func(l wire.Lane, _ Request) {
		if l == wire.LaneUrgent {
			parked <- struct{}{}
			<-park
			urgentDone.Store(true)
			return
		}
		bulkCame <- struct{}{}
	}
	c := newClient(t)
	attach(t, s, c, wire.LaneUrgent)
	attach(t, s, c, wire.LaneBulk)
	req := Request{uint32(p.pid), p.area(t, "plain").start, 64}
	urgent := fetchAll(t, c, wire.LaneUrgent, req, 1)
	await(t, "urgent request being read", parked)
	early := make(chan bool, 1)
	if err := c.Fetch(wire.LaneBulk, req, make([]byte, 64*PageSize), func(_ Reply, err error) {
		early <- err != nil || !urgentDone.Load()
	}); err != nil {
		t.Fatal(err)
	}
	await(t, "bulk request at the gate", bulkCame)
	kerneltest.Eventually(t, "bulk to stand back", func() bool {
		s.gate.mu.Lock()
		defer s.gate.mu.Unlock()
		return s.gate.standing == 1
	})
	close(park)
	if err := await(t, "urgent answer", urgent); err != nil {
		t.Fatal(err)
	}
	if await(t, "bulk answer", early) {
		t.Error("bulk was answered before the urgent request that had begun earlier")
	}
}

// TestGate: bulk waits for the urgent requests that it found, not for those that come later.
func TestGate(t *testing.T) {
	kerneltest.Leaks(t)
	g := newGate()
	g.stand() // nothing urgent
	g.enter()
	passed := make(chan struct{})
	go func() { g.stand(); close(passed) }()
	kerneltest.Eventually(t, "bulk to stand", func() bool {
		select {
		case <-passed:
			t.Error("bulk passed an urgent request")
			return true
		default:
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.standing == 1
	})
	g.enter() // later
	g.leave()
	await(t, "passage", passed)
	g.leave()
}

func TestLaneLost(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	s := newServer(t, Task{uint32(p.pid), p.pid})
	park, parked := make(chan struct{}), make(chan struct{}, 1000)
	s.hookChunk = func(l wire.Lane, _ Request) {
		if l == wire.LaneBulk {
			parked <- struct{}{}
			<-park
		}
	}
	lost := make(chan wire.Lane, 10)
	c := NewClient(ClientOptions{Lost: func(l wire.Lane, err error) {
		if errors.Is(err, ErrLaneLost) {
			lost <- l
		}
	}})
	t.Cleanup(func() { _ = c.Close() })
	req := Request{uint32(p.pid), p.area(t, "plain").start, 64}
	nothing := func(Reply, error) { t.Error("done was called although Fetch failed") }
	if err := c.Fetch(wire.LaneBulk, req, make([]byte, 64*PageSize), nothing); !errors.Is(err, ErrLaneLost) {
		t.Fatalf("fetch without a lane: %v", err)
	}
	a, b := pair(t)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(t.Context(), a, wire.LaneBulk) }()
	c.Attach(wire.LaneBulk, b)
	attach(t, s, c, wire.LaneUrgent)
	bulk := fetchAll(t, c, wire.LaneBulk, req, 50)
	await(t, "bulk request being read", parked)
	_ = a.Close() // the source's end goes
	for range 50 {
		if err := await(t, "failure of what was in flight", bulk); !errors.Is(err, ErrLaneLost) {
			t.Fatal(err)
		}
	}
	if l := await(t, "loss", lost); l != wire.LaneBulk {
		t.Fatalf("lost %v", l)
	}
	checkPages(t, c, wire.LaneUrgent, p, p.area(t, "plain"), 0, 64) // the other lane lives
	close(park)
	if err := await(t, "end of Serve", ended); err == nil {
		t.Error("Serve knows of no error")
	}
	attach(t, s, c, wire.LaneBulk) // and the lane can come back
	checkPages(t, c, wire.LaneBulk, p, p.area(t, "plain"), 0, 64)
	if len(lost) != 0 {
		t.Error("lost a second lane")
	}
}

// TestReplaced: attaching a second connection fails what is in flight on the first.
func TestReplaced(t *testing.T) {
	kerneltest.Leaks(t)
	c := newClient(t)
	_, silent := pair(t)
	c.Attach(wire.LaneUrgent, silent)
	ch := fetchAll(t, c, wire.LaneUrgent, Request{1, PageSize, 64}, 10)
	_, other := pair(t)
	c.Attach(wire.LaneUrgent, other)
	for range 10 {
		if err := await(t, "failure", ch); !errors.Is(err, ErrLaneLost) {
			t.Fatal(err)
		}
	}
	ch = fetchAll(t, c, wire.LaneUrgent, Request{1, PageSize, 64}, 10)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := await(t, "failure", ch); !errors.Is(err, ErrLaneLost) {
			t.Fatal(err)
		}
	}
}

// TestBadRequests: refused by the client already, and by the server if they come all the same; the connection lives.
func TestBadRequests(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	s := newServer(t, Task{uint32(p.pid), p.pid})
	good := Request{uint32(p.pid), p.area(t, "plain").start, 64}
	c := newClient(t)
	attach(t, s, c, wire.LaneUrgent)
	raw, b := pair(t)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(t.Context(), b, wire.LaneBulk) }()
	for i, r := range []Request{
		{good.Task, good.Addr, 0},
		{good.Task, good.Addr, MaxPages + 1},
		{good.Task, good.Addr, 1 << 31},
		{good.Task, good.Addr, 1<<32 - 1},
		{good.Task, good.Addr + 1, 1},
		{good.Task, 1<<64 - PageSize, 1},
		{good.Task, 1<<64 - PageSize, 64},
		{good.Task, 1 << 63, 1},
		{good.Task, maxAddr - PageSize, 2},
		{good.Task + 1, good.Addr, 1},
		{0, good.Addr, 1},
	} {
		if r.Task == good.Task {
			if err := c.Fetch(wire.LaneUrgent, r, make([]byte, 64*PageSize), nil); !errors.Is(err, unix.EINVAL) {
				t.Errorf("%+v: the client says %v", r, err)
			}
		} else if _, err := fetch(t, c, wire.LaneUrgent, r); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%+v: %v", r, err)
		}
		if err := raw.Send(wire.MsgPages, 0, uint64(i), r.appendTo(nil)); err != nil {
			t.Fatal(err)
		}
		h, payload, err := raw.Recv()
		if err != nil || h.Type != wire.MsgError || h.ID != uint64(i) {
			t.Fatalf("%+v: answer %+v, %v", r, h, err)
		}
		if err := wire.ParseError(payload); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	// The highest address that may be asked for is in no mapping, and answered.
	if g, err := fetch(t, c, wire.LaneUrgent, Request{good.Task, 0, 64}); err != nil || g.kinds[0] != KindError {
		t.Errorf("page 0: %v, %v", g.kinds, err)
	}
	if err := raw.Send(wire.MsgPing, 0, 7); err != nil {
		t.Fatal(err)
	}
	if h, _, err := raw.Recv(); err != nil || h.Type != wire.MsgPong || h.ID != 7 {
		t.Fatalf("ping: %+v, %v", h, err)
	}
	if err := raw.Send(wire.MsgPages, 0, 1, good.appendTo(nil)[:15]); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "end of Serve", ended); !errors.Is(err, ErrProtocol) {
		t.Errorf("a short request: %v", err)
	}
	if _, _, err := raw.Recv(); err == nil {
		t.Error("the connection lives after a short request")
	}
	checkPages(t, c, wire.LaneUrgent, p, p.area(t, "plain"), 0, 64)
}

// TestBadReplies: what a broken source may send ends the lane, fails the request and writes nothing past its answer.
func TestBadReplies(t *testing.T) {
	kerneltest.Leaks(t)
	page := make([]byte, PageSize)
	for _, bad := range []struct {
		name    string
		typ     wire.Type
		id      uint64 // added to the request's
		payload []byte
	}{
		{"empty", wire.MsgPaged, 0, nil},
		{"no runs", wire.MsgPaged, 0, []byte{0, 0, 0, 0}},
		{"too many runs", wire.MsgPaged, 0, []byte{255, 255, 255, 255}},
		{"more runs than bytes", wire.MsgPaged, 0, []byte{0, 0, 0, 2, 2, 0, 0, 0, 0, 0, 1}},
		{"too few pages", wire.MsgPaged, 0, appendRuns(nil, []Run{{KindZero, 0, 1}})},
		{"too many pages", wire.MsgPaged, 0, appendRuns(nil, []Run{{KindZero, 0, 3}})},
		{"empty run", wire.MsgPaged, 0, appendRuns(nil, []Run{{KindZero, 0, 2}, {KindZero, 0, 0}})},
		{"overflow", wire.MsgPaged, 0, appendRuns(nil, []Run{{KindZero, 0, 1<<32 - 1}, {KindZero, 0, 3}})},
		{"unknown kind", wire.MsgPaged, 0, appendRuns(nil, []Run{{6, 0, 2}})},
		{"kind 0", wire.MsgPaged, 0, appendRuns(nil, []Run{{0, 0, 2}})},
		{"error without errno", wire.MsgPaged, 0, appendRuns(nil, []Run{{KindError, 0, 2}})},
		{"zero with errno", wire.MsgPaged, 0, appendRuns(nil, []Run{{KindZero, 5, 2}})},
		{"data missing", wire.MsgPaged, 0, append(appendRuns(nil, []Run{{KindData, 0, 2}}), page...)},
		{"too much data", wire.MsgPaged, 0, append(appendRuns(nil, []Run{{KindData, 0, 1}, {KindZero, 0, 1}}), append(page, 1)...)},
		{"data of zeros", wire.MsgPaged, 0, append(appendRuns(nil, []Run{{KindZero, 0, 2}}), page...)},
		{"another type", wire.MsgLaid, 0, nil},
		{"a request", wire.MsgPages, 0, make([]byte, requestSize)},
		{"another request", wire.MsgPaged, 1, appendRuns(nil, []Run{{KindZero, 0, 2}})},
		{"long error", wire.MsgError, 0, make([]byte, maxErrorFrame+1)},
	} {
		t.Run(bad.name, func(t *testing.T) {
			source, b := pair(t)
			c := newClient(t)
			c.Attach(wire.LaneBulk, b)
			ch := fetchAll(t, c, wire.LaneBulk, Request{1, PageSize, 2}, 1)
			h, _, err := source.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if err := source.Send(bad.typ, 0, h.ID+bad.id, bad.payload); err != nil {
				t.Fatal(err)
			}
			if err := await(t, "failure", ch); !errors.Is(err, ErrProtocol) || !errors.Is(err, ErrLaneLost) {
				t.Errorf("%v", err)
			}
			if _, _, err := source.Recv(); err == nil {
				t.Error("the lane lives")
			}
		})
	}
}

// TestErrorReply: an error for one request leaves the lane alive and keeps its errno.
func TestErrorReply(t *testing.T) {
	kerneltest.Leaks(t)
	source, b := pair(t)
	c := newClient(t)
	c.Attach(wire.LaneBulk, b)
	for _, want := range []error{unix.EIO, ErrSourceLost} {
		ch := fetchAll(t, c, wire.LaneBulk, Request{1, PageSize, 2}, 1)
		h, _, err := source.Recv()
		if err != nil {
			t.Fatal(err)
		}
		sent := want
		if errors.Is(want, ErrSourceLost) {
			sent = errors.Join(ErrSourceLost, unix.ESRCH)
		}
		if err := source.Send(wire.MsgError, 0, h.ID, wire.MarshalError(sent)); err != nil {
			t.Fatal(err)
		}
		if err := await(t, "answer", ch); !errors.Is(err, want) || errors.Is(err, ErrLaneLost) {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

// TestInFlightIsBounded: a lane does not take requests without end.
func TestInFlightIsBounded(t *testing.T) {
	kerneltest.Leaks(t)
	a, b := net.Pipe() // whatever is written is thrown away
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := a.Read(buf); err != nil {
				return
			}
		}
	}()
	c := newClient(t)
	c.Attach(wire.LaneBulk, wire.NewConn(b))
	failed := make(chan error, MaxInFlight)
	dst := make([]byte, PageSize)
	var err error
	for i := range MaxInFlight + 1 {
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		err = c.Fetch(wire.LaneBulk, Request{1, PageSize, 1}, dst, func(_ Reply, err error) { failed <- err })
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("one more: %v", err)
	}
	_ = c.Close()
	for range MaxInFlight {
		if err := await(t, "failure", failed); !errors.Is(err, ErrLaneLost) {
			t.Fatal(err)
		}
	}
	_ = a.Close()
}
