package pagesrv

import (
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestParts asks for pages of all kinds of memory, scattered, many ranges at a time: each is what it is when it is asked for alone.
func TestParts(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	type part struct {
		a        area
		first, n uint32
	}
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
	var all []part
	for _, a := range p.areas {
		for i := uint32(0); i < min(a.pages, 300); {
			n := min(1+rnd.Uint32N(7), a.pages-i)
			all = append(all, part{a, i, n})
			i += n
		}
	}
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, legacy := range []bool{false, true} {
		s := newServer(t, Task{uint32(p.pid), p.pid})
		s.legacy = s.legacy || legacy
		c := newClient(t)
		attach(t, s, c, wire.LaneBulk)
		for left := all; len(left) > 0; {
			var reqs []Request
			pages := uint32(0)
			k := 0
			for ; k < len(left) && k < MaxParts && pages+left[k].n <= MaxPages; k++ {
				x := left[k]
				reqs = append(reqs, Request{uint32(p.pid), x.a.start + uint64(x.first)*PageSize, x.n})
				pages += x.n
			}
			g, err := fetchBy(t, pages, func(dst []byte, done func(Reply, error)) error { return c.FetchParts(wire.LaneBulk, reqs, dst, done) })
			if err != nil {
				t.Fatal(err)
			}
			if len(g.kinds) != int(pages) {
				t.Fatalf("%d pages of %d", len(g.kinds), pages)
			}
			for _, x := range left[:k] {
				checkGot(t, p, x.a, x.first, x.n, got{kinds: g.kinds[:x.n], errno: g.errno[:x.n], pages: g.pages[:x.n]})
				g.kinds, g.errno, g.pages = g.kinds[x.n:], g.errno[x.n:], g.pages[x.n:]
			}
			left = left[k:]
		}
	}
}

// TestPartsRefused: what is no request of several ranges is not sent, and what a peer sends all the same is refused.
func TestPartsRefused(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	id, at := uint32(p.pid), p.area(t, "plain").start
	s := newServer(t, Task{id, p.pid})
	c := newClient(t)
	ended := attach(t, s, c, wire.LaneUrgent)
	attach(t, s, c, wire.LaneBulk)
	dst := make([]byte, MaxPages*PageSize)
	none := func(Reply, error) { t.Error("answered") }
	for _, bad := range [][]Request{
		{},
		{{id, at, 255}, {id, at, 2}},
		{{id, at, 1}, {id, at, 0}},
		{{id, at, 1}, {id, at + 1, 1}},
		{{id, at, 1}, {id + 1, at, 1}},
		make([]Request, MaxParts+1),
	} {
		if err := c.FetchParts(wire.LaneBulk, bad, dst, none); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%d ranges: %v", len(bad), err)
		}
	}
	two := []Request{{id, at, 1}, {id, at + 4*PageSize, 1}}
	if err := c.FetchParts(wire.LaneUrgent, two, dst, none); !errors.Is(err, unix.EINVAL) {
		t.Errorf("on the urgent lane: %v", err)
	}
	// Together they are more than an answer may hold: the source says so, and the lane lives.
	_, err := fetchBy(t, 1, func(_ []byte, done func(Reply, error)) error {
		return c.send(wire.LaneBulk, wire.MsgPages, 0, appendParts(nil, []Request{{id, at, 255}, {id, at, 255}}), &call{pages: MaxPages, dst: dst, done: done})
	})
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("too many pages: %v", err)
	}
	if _, err := fetchBy(t, 2, func(dst []byte, done func(Reply, error)) error { return c.FetchParts(wire.LaneBulk, two, dst, done) }); err != nil {
		t.Error(err)
	}
	_, err = fetchBy(t, 1, func(dst []byte, done func(Reply, error)) error {
		return c.send(wire.LaneUrgent, wire.MsgPages, 0, appendParts(nil, two), &call{pages: 2, dst: dst, done: done})
	})
	if !errors.Is(err, ErrLaneLost) {
		t.Errorf("several ranges on the urgent lane: %v", err)
	}
	if err := await(t, "end of the urgent lane", ended); !errors.Is(err, ErrProtocol) {
		t.Errorf("the server says %v", err)
	}
}
