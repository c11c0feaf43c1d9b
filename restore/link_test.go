package restore

import (
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/restore/memory"
	"github.com/lazymig/lazymig/wire"
)

// fakeHandler is the other end of a link.
type fakeHandler struct {
	t    *testing.T
	hub  *hub
	link *link
	sock *fdpass.Socket
}

func newFakeHandler(t *testing.T) *fakeHandler {
	t.Helper()
	f := &fakeHandler{t: t, hub: newHub(testLog(t), func(Event) {})}
	engine := memory.New(memory.Options{})
	f.hub.setEngine(engine, nil, func(uint32) {})
	sock, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	f.sock = sock
	if err := f.hub.attach(peer); err != nil {
		t.Fatal(err)
	}
	f.link = f.hub.link
	t.Cleanup(func() {
		f.sock.Close()
		f.hub.close()
	})
	buf := make([]byte, 256)
	n, files, err := sock.Recv(buf)
	if err != nil {
		t.Fatal(err)
	}
	defer fdpass.CloseAll(files)
	if m, err := parseLink(buf[:n]); err != nil || m.kind != linkWelcome || len(files) != 1 {
		t.Fatalf("welcome %+v, %d files, %v", m, len(files), err)
	}
	return f
}

func (f *fakeHandler) next() slotWant {
	f.t.Helper()
	buf := make([]byte, 256)
	n, _, err := f.sock.Recv(buf)
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := parseLink(buf[:n])
	if err != nil || m.kind != linkWant {
		f.t.Fatalf("%+v, %v", m, err)
	}
	return m.slotWant
}

func (f *fakeHandler) send(b []byte) {
	f.t.Helper()
	if err := f.sock.Send(b); err != nil {
		f.t.Fatal(err)
	}
}

// Bulk wants never take the last slots, so an urgent one goes out at once.
func TestSlots(t *testing.T) {
	kerneltest.Leaks(t)
	f := newFakeHandler(t)
	for i := range 2 * slotCount {
		if err := f.link.Ask(memory.Want{ID: uint64(i), Addr: uint64(i) << 20, Pages: 64}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.link.Ask(memory.Want{ID: 1000, Pages: 8, Urgent: true}); err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]bool{}
	var first slotWant
	for i := range slotCount - urgentOwn {
		w := f.next()
		if w.want.Urgent || seen[w.slot] || w.slot >= slotCount {
			t.Fatalf("want %d is %+v", i, w)
		}
		seen[w.slot] = true
		if i == 0 {
			first = w
		}
	}
	if w := f.next(); !w.want.Urgent || seen[w.slot] {
		t.Fatalf("after the bulk's share comes %+v", w)
	}
	f.send(failed(first, unix.EIO))
	if w := f.next(); w.want.Urgent || w.slot != first.slot {
		t.Fatalf("a free slot went to %+v", w)
	}
	// What is prefetched goes before the bulk that waits, too.
	if err := f.link.Ask(memory.Want{ID: 1001, Pages: 8, Prefetch: true}); err != nil {
		t.Fatal(err)
	}
	if w := f.next(); !w.want.Prefetch {
		t.Fatalf("before what is prefetched comes %+v", w)
	}
	if err := f.link.Ask(memory.Want{Pages: pagesrv.MaxPages + 1}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%d pages: %v", pagesrv.MaxPages+1, err)
	}
}

// A handler that says what cannot be is dropped, and the engine never hears of it.
func TestLyingHandler(t *testing.T) {
	data := []pagesrv.Run{{Kind: pagesrv.KindData, Pages: 8}}
	for name, answer := range map[string]func(slotWant) []byte{
		"unknown want":   func(w slotWant) []byte { w.seq += 7; return brought(w, data, 8*4096) },
		"other slot":     func(w slotWant) []byte { w.slot ^= 1; return brought(w, data, 8*4096) },
		"too few pages":  func(w slotWant) []byte { return brought(w, data[:0], 0) },
		"too many pages": func(w slotWant) []byte { return brought(w, append(data, data...), 16*4096) },
		"too few bytes":  func(w slotWant) []byte { return brought(w, data, 7*4096) },
		"huge count": func(w slotWant) []byte {
			return brought(w, []pagesrv.Run{{Kind: 1, Pages: 1 << 31}, {Kind: 1, Pages: 1 << 31}}, 0)
		},
		"a want":            func(w slotWant) []byte { return w.encode() },
		"an unasked survey": func(w slotWant) []byte { return found(w, pagesrv.Layout{End: 4096}) },
		"nonsense":          func(slotWant) []byte { return []byte{99, 1, 2} },
		"cut short":         func(w slotWant) []byte { return brought(w, data, 8*4096)[:20] },
	} {
		t.Run(name, func(t *testing.T) {
			kerneltest.Leaks(t)
			f := newFakeHandler(t)
			if err := f.link.Ask(memory.Want{ID: 1, Pages: 8, Urgent: true}); err != nil {
				t.Fatal(err)
			}
			f.send(answer(f.next()))
			kerneltest.Eventually(t, "the handler is dropped", func() bool {
				f.hub.mu.Lock()
				defer f.hub.mu.Unlock()
				return f.hub.link == nil
			})
			if err := f.link.Ask(memory.Want{Pages: 1}); err == nil {
				t.Error("a dropped link takes wants")
			}
		})
	}
}

func FuzzParseLink(f *testing.F) {
	w := slotWant{seq: 3, slot: 5, want: memory.Want{Task: 9, Addr: 0x7f00_0000_0000, Pages: 8, Urgent: true}}
	f.Add(w.encode())
	w.want.Urgent, w.want.More = false, []memory.Span{{Addr: 0x1000, Pages: 1}, {Addr: 0x7f00_0010_0000, Pages: 200}}
	f.Add(w.encode())
	f.Add(welcome())
	f.Add(brought(w, []pagesrv.Run{{Kind: pagesrv.KindData, Pages: 3}, {Kind: pagesrv.KindZero, Pages: 5}}, 3*4096))
	f.Add(failed(w, unix.ESRCH))
	f.Add(found(w, pagesrv.Layout{End: 0x9000, Fetch: []pagesrv.Range{{Start: 0x1000, End: 0x3000}}}))
	f.Add(slotWant{seq: 4, slot: noSlot, want: memory.Want{Task: 1, Addr: 0x1000}, end: 0x2000}.encode())
	f.Add([]byte{3, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseLink(b)
		if err != nil {
			return
		}
		if m.kind == linkBrought && m.check(memory.Want{Pages: 8}) == nil && m.bytes > 8*4096 {
			t.Fatalf("%d bytes of 8 pages", m.bytes)
		}
	})
}

// TestParseScattered: a want of several ranges is what it was; one of one range has the bytes that it always had; what does not fit is refused.
func TestParseScattered(t *testing.T) {
	w := slotWant{seq: 3, slot: 5, want: memory.Want{Task: 9, Addr: 0x7f00_0000_0000, Pages: 8}}
	one := "02" + "0000000000000003" + "00000005" + "00000009" + "00007f0000000000" + "00000008" + "00" + "00"
	if got := hex.EncodeToString(w.encode()); got != one {
		t.Errorf("one range: %s, want %s", got, one)
	}
	w.want.More = []memory.Span{{Addr: 0x1000, Pages: 1}, {Addr: 0x9000, Pages: 247}}
	b := w.encode()
	if got, want := hex.EncodeToString(b), one+"00000002"+"0000000000001000"+"00000001"+"0000000000009000"+"000000f7"; got != want {
		t.Errorf("three ranges: %s, want %s", got, want)
	}
	m, err := parseLink(b)
	if err != nil || !reflect.DeepEqual(m.want, w.want) || !fits(m.want) {
		t.Errorf("%+v, %v", m.want, err)
	}
	if err := (linkMessage{runs: []memory.Run{{Kind: memory.Zero, Pages: 256}}}).check(m.want); err != nil {
		t.Error(err)
	}
	if (linkMessage{runs: []memory.Run{{Kind: memory.Zero, Pages: 8}}}).check(m.want) == nil {
		t.Error("an answer to the first range alone is taken")
	}
	for _, bad := range []memory.Want{
		{Pages: 8, More: []memory.Span{{Addr: 0x1000, Pages: 249}}},
		{Pages: 8, More: []memory.Span{{Addr: 0x1000, Pages: 1<<32 - 8}}},
		{Pages: 8, More: []memory.Span{{Addr: 0x1000}}},
		{Pages: 8, More: []memory.Span{{Addr: 0x1000, Pages: 1}}, Urgent: true},
		{Pages: 1, More: slices.Repeat([]memory.Span{{Addr: 0x1000, Pages: 1}}, pagesrv.MaxParts)},
	} {
		if fits(bad) {
			t.Errorf("%+v fits", bad)
		}
	}
	w.want.More = slices.Repeat([]memory.Span{{Addr: 0x1000, Pages: 1}}, pagesrv.MaxParts)
	if _, err := parseLink(w.encode()); !errors.Is(err, wire.ErrLong) {
		t.Errorf("too many ranges: %v", err)
	}
}

func TestLaneQueue(t *testing.T) {
	q := newLaneQueue()
	push := func(seq uint64) {
		t.Helper()
		if _, ok := q.direct(slotWant{seq: seq}); ok {
			t.Fatal("a lane that is away takes a want")
		}
	}
	push(1)
	got := make(chan slotWant, 3)
	vias := make(chan via, 3)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			w, v, ok := q.pop()
			if !ok {
				return
			}
			vias <- v
			got <- w
		}
	}()
	next := func() (slotWant, via) {
		select {
		case w := <-got:
			return w, <-vias
		case <-time.After(kerneltest.Patience):
			t.Fatal("nothing comes")
			return slotWant{}, via{}
		}
	}
	q.up(wire.LaneBulk)
	w, old := next()
	if w.seq != 1 {
		t.Fatal("another want came")
	}
	q.again(w, old) // its connection is lost: waits for the next
	push(2)
	q.up(wire.LaneBulk)
	if w, _ := next(); w.seq != 1 {
		t.Fatal("a want that was lost is not the first")
	}
	if w, v := next(); w.seq != 2 || v == old {
		t.Fatal("second want")
	}
	q.again(slotWant{seq: 3}, old) // told late: the lane is up again already
	if w, _ := next(); w.seq != 3 {
		t.Fatal("a want of an old connection is stuck")
	}
	q.close()
	<-done
}

// Wants go over the lane with the fewest under way. What was on a lane that is lost goes over another at once.
func TestLanesShare(t *testing.T) {
	q := newLaneQueue()
	one, two := wire.BulkLane(0), wire.BulkLane(1)
	q.up(one)
	q.up(two)
	count := map[wire.Lane][]via{}
	for seq := range uint64(10) {
		v, ok := q.direct(slotWant{seq: seq})
		if !ok {
			t.Fatal("no lane")
		}
		count[v.lane] = append(count[v.lane], v)
	}
	if len(count[one]) != 5 || len(count[two]) != 5 || q.flying() != 10 {
		t.Fatalf("%v, %d under way", count, q.flying())
	}
	for _, v := range count[one] {
		q.answered(v)
	}
	if v, _ := q.direct(slotWant{}); v.lane != one {
		t.Error("it goes over the lane that is busy")
	}
	for _, v := range count[two] {
		q.again(slotWant{seq: 7}, v)
	}
	for range count[two] {
		if w, v, ok := q.pop(); !ok || w.seq != 7 || v.lane != one {
			t.Fatalf("want %d over %v, %v", w.seq, v, ok)
		}
	}
	q.up(two)
	q.answered(count[two][0]) // of the connection before
	if n := q.flying(); n != 6 {
		t.Errorf("%d under way", n)
	}
	if v, _ := q.direct(slotWant{}); v.lane != two {
		t.Error("the lane that is up again is not used")
	}
}

// Lanes are added for as long as each brings more, and not while nothing is to be learned.
func TestMoreLanes(t *testing.T) {
	for name, c := range map[string]struct {
		first, most int
		gives       []uint64 // in a turn, with so many lanes
		idle        bool
		want        int
	}{
		"each brings more":      {1, 4, []uint64{0, 100, 200, 300, 400, 500}, false, 4},
		"the third does not":    {1, 8, []uint64{0, 100, 200, 205, 205, 205}, false, 3},
		"as many as demanded":   {3, 3, []uint64{0, 100, 100, 100}, false, 3},
		"nothing is under way":  {1, 8, []uint64{0, 100, 200, 300}, true, 1},
		"two to begin with":     {2, 8, []uint64{0, 100, 200, 201}, false, 3},
		"none is asked for: 0":  {0, 0, []uint64{0, 100}, false, 1},
		"one, whatever happens": {1, 1, []uint64{0, 100}, false, 1},
	} {
		have, came := 1, uint64(0)
		m := &moreLanes{
			first: c.first, most: c.most, busy: func() bool { return !c.idle },
			bytes: func() uint64 { // in a turn
				came += c.gives[min(have, len(c.gives)-1)]
				return came
			},
			ask: func(l wire.Lane) {
				if l != wire.BulkLane(have) {
					t.Errorf("%s: asks for %v after %d", name, l, have)
				}
				have++
			},
		}
		tick, done := make(chan time.Time), make(chan struct{})
		go func() { defer close(done); m.run(tick) }()
		for turn, ended := 0, false; turn < 30 && !ended; turn++ {
			select {
			case <-done:
				ended = true
			case tick <- time.Time{}:
			}
		}
		close(tick)
		<-done
		if have != c.want {
			t.Errorf("%s: %d lanes, not %d", name, have, c.want)
		}
	}
}

func TestEventQueue(t *testing.T) {
	kerneltest.Leaks(t)
	q := newEventQueue()
	for i := range 1000 {
		q.put(Event{Kind: EventProgress, Status: i})
	}
	q.put(Event{Kind: EventDrained})
	q.put(Event{Kind: EventExited})
	q.end()
	q.put(Event{Kind: EventProblem}) // too late
	var kinds []EventKind
	last := 0
	for e := range q.out {
		kinds = append(kinds, e.Kind)
		if e.Kind == EventProgress {
			last = e.Status
		}
	}
	n := len(kinds)
	if n < 3 || n > 4 || kinds[n-2] != EventDrained || kinds[n-1] != EventExited || last != 999 {
		t.Errorf("%v, last progress %d", kinds, last)
	}
	q.close()
	q.close()
	q = newEventQueue()
	q.put(Event{Kind: EventDrained})
	q.close() // nobody reads
}

// A lane is asked for whenever it is lost after it was given, also when the loss of the other is told late.
func TestLanesAsked(t *testing.T) {
	asked := make(chan wire.Lane, 10)
	c := &Capsule{log: testLog(t), dead: make(chan struct{})}
	h := &Handler{c: c, asked: make(map[wire.Lane]bool), stopping: t.Context(), o: HandlerOptions{OnLaneLost: func(l wire.Lane) { asked <- l }}}
	given := func(lane wire.Lane) { h.asked[lane] = false }
	expect := func(what string, lane wire.Lane) {
		t.Helper()
		select {
		case l := <-asked:
			if l != lane {
				t.Fatalf("%s: asked for %v", what, l)
			}
		case <-time.After(kerneltest.Patience):
			t.Fatal("not asked:", what)
		}
	}
	h.lost(wire.LaneUrgent)
	expect("at the start", wire.LaneUrgent)
	h.lost(wire.LaneBulk)
	expect("at the start", wire.LaneBulk)
	given(wire.LaneUrgent)
	h.lost(wire.LaneBulk) // asked for already
	h.lost(wire.LaneUrgent)
	expect("the urgent lane, lost after it was given", wire.LaneUrgent)
	given(wire.LaneBulk)
	given(wire.LaneUrgent)
	h.lost(wire.LaneBulk)
	expect("the bulk lane", wire.LaneBulk)
	if len(asked) > 0 {
		t.Error("asked too often")
	}
}

func TestGaps(t *testing.T) {
	rs := func(at ...uint64) (l []pagesrv.Range) {
		for i := 0; i < len(at); i += 2 {
			l = append(l, pagesrv.Range{Start: at[i], End: at[i+1]})
		}
		return l
	}
	for _, c := range []struct {
		fetch []pagesrv.Range
		end   uint64
		want  []memory.Region
		bad   bool
	}{
		{end: 0x9000, want: []memory.Region{{Start: 0x1000, End: 0x9000}}},
		{fetch: rs(0x1000, 0x9000), end: 0x9000},
		{fetch: rs(0x1000, 0x2000, 0x3000, 0x4000), end: 0x5000, want: []memory.Region{{Start: 0x2000, End: 0x3000}, {Start: 0x4000, End: 0x5000}}},
		{fetch: rs(0x2000, 0x5000), end: 0x5000, want: []memory.Region{{Start: 0x1000, End: 0x2000}}},
		{end: 0x1000, bad: true},
		{end: 0xa000, bad: true},
		{end: 0x4001, bad: true},
		{fetch: rs(0, 0x2000), end: 0x9000, bad: true},
		{fetch: rs(0x3000, 0x2000), end: 0x9000, bad: true},
		{fetch: rs(0x2000, 0x4000, 0x3000, 0x5000), end: 0x9000, bad: true},
		{fetch: rs(0x2000, 0x4000), end: 0x3000, bad: true},
		{fetch: rs(0x2001, 0x4000), end: 0x9000, bad: true},
	} {
		l := pagesrv.Layout{End: c.end, Fetch: c.fetch}
		err := checkLayout(l, 0x1000, 0x9000)
		if (err != nil) != c.bad {
			t.Errorf("%+v: %v", l, err)
		}
		if err == nil && !slices.Equal(gaps(l, 0x1000), c.want) {
			t.Errorf("gaps of %+v: %+v", l, gaps(l, 0x1000))
		}
	}
}

// A survey ends with its answer, or with the handler.
func TestSurvey(t *testing.T) {
	kerneltest.Leaks(t)
	f := newFakeHandler(t)
	type result struct {
		l   pagesrv.Layout
		err error
	}
	results := make(chan result, 1)
	begin := func() slotWant {
		go func() {
			l, err := f.link.survey(7, 0x10000, 0x90000)
			results <- result{l, err}
		}()
		buf := make([]byte, 256)
		n, _, err := f.sock.Recv(buf)
		if err != nil {
			t.Fatal(err)
		}
		m, err := parseLink(buf[:n])
		if err != nil || m.kind != linkSurvey || m.want.Task != 7 || m.want.Addr != 0x10000 || m.end != 0x90000 {
			t.Fatalf("%+v, %v", m, err)
		}
		return m.slotWant
	}
	f.send(found(begin(), pagesrv.Layout{End: 0x20000, Fetch: []pagesrv.Range{{Start: 0x11000, End: 0x12000}}}))
	if r := <-results; r.err != nil || r.l.End != 0x20000 || len(r.l.Fetch) != 1 {
		t.Errorf("%+v", r)
	}
	f.send(failed(begin(), unix.ESRCH))
	if r := <-results; !errors.Is(r.err, unix.ESRCH) {
		t.Errorf("%+v", r)
	}
	begin()
	f.sock.Close()
	if r := <-results; !errors.Is(r.err, errNoHandler) {
		t.Errorf("%+v", r)
	}
}

// The agent replaces the handler that a capsule at its end takes leave of. A link that came then would be waited for, for ever.
func TestAttachAtTheEnd(t *testing.T) {
	kerneltest.Leaks(t)
	h := newHub(testLog(t), func(Event) {})
	engine := memory.New(memory.Options{})
	h.setEngine(engine, nil, func(uint32) {})
	h.close()
	sock, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	if err := h.attach(peer); !errors.Is(err, errClosing) {
		t.Errorf("attach after close: %v", err)
	}
	if err := h.drain(false); !errors.Is(err, errClosing) {
		t.Errorf("drain after close: %v", err)
	}
}
