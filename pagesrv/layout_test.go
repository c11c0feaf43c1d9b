package pagesrv

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// layoutOf asks until the whole range is known.
func layoutOf(t *testing.T, c *Client, req LayoutRequest) ([]Range, error) {
	t.Helper()
	var out []Range
	for req.Start < req.End {
		type result struct {
			l   Layout
			err error
		}
		ch := make(chan result, 1)
		if err := c.Layout(wire.LaneBulk, req, func(l Layout, err error) { ch <- result{l, err} }); err != nil {
			return out, err
		}
		r := await(t, "layout", ch)
		if r.err != nil {
			return out, r.err
		}
		for _, r := range r.l.Fetch {
			out = appendRange(out, r)
		}
		req.Start = r.l.End
	}
	return out, nil
}

// TestLayout: over the whole program, pages outside the layout are zero, and it has little in it that is.
func TestLayout(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	for _, legacy := range []bool{false, true} {
		s := newServer(t, Task{uint32(p.pid), p.pid})
		s.legacy = s.legacy || legacy
		c := newClient(t)
		attach(t, s, c, wire.LaneBulk)
		for _, a := range p.areas {
			got, err := layoutOf(t, c, LayoutRequest{uint32(p.pid), a.start, a.start + uint64(a.pages)*PageSize})
			if err != nil {
				t.Fatal(err)
			}
			for i := range a.pages {
				addr := a.start + uint64(i)*PageSize
				in := slices.ContainsFunc(got, func(r Range) bool { return r.Start <= addr && addr < r.End })
				want := true
				switch a.name {
				case "holes", "holes_prot_none":
					want = i%3 == 0
				case "untouched":
					want = false
				case "read_only_touched":
					want = s.legacy // there the kernel's zero page looks like any other
				}
				if in != want {
					t.Errorf("legacy=%v: %s page %d: to be fetched %v, want %v", legacy, a.name, i, in, want)
				}
			}
		}
		req := LayoutRequest{uint32(p.pid), p.area(t, "plain").start, p.area(t, "plain").start + PageSize}
		for _, bad := range []LayoutRequest{{req.Task, req.Start, req.Start}, {req.Task, req.End, req.Start}, {req.Task, req.Start + 1, req.End}, {req.Task, 0, 1 << 57}} {
			if err := c.Layout(wire.LaneBulk, bad, nil); !errors.Is(err, unix.EINVAL) {
				t.Errorf("%+v: %v", bad, err)
			}
		}
	}
}

// TestLayoutOfLost: nothing is said of a task that has ended.
func TestLayoutOfLost(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	s := newServer(t, Task{uint32(p.pid), p.pid})
	c := newClient(t)
	attach(t, s, c, wire.LaneBulk)
	a := p.area(t, "plain")
	req := LayoutRequest{uint32(p.pid), a.start, a.start + PageSize}
	if _, err := layoutOf(t, c, req); err != nil {
		t.Fatal(err)
	}
	p.kill()
	if l, err := layoutOf(t, c, req); !errors.Is(err, ErrSourceLost) {
		t.Fatalf("%v, %v", l, err)
	}
}

// TestWithGaps: more ranges than an answer holds are cut short where they can go on.
func TestWithGaps(t *testing.T) {
	f := &taskFiles{anon: []Range{{0x10000, 0x20000000}}}
	var found []Range
	for i := range uint64(2 * maxRanges) {
		found = append(found, Range{0x10000 + 2*i*PageSize, 0x10000 + (2*i+1)*PageSize})
	}
	l := f.withGaps(found, 0x10000, 0x20000000)
	if len(l.Fetch) != maxRanges || l.End != found[maxRanges-1].End || !slices.Equal(l.Fetch, found[:maxRanges]) {
		t.Errorf("%d ranges until %#x", len(l.Fetch), l.End)
	}
	for _, c := range []struct {
		anon, found []Range
		want        string
	}{
		{nil, nil, "[{4096 65536}]"},
		{[]Range{{0x1000, 0x10000}}, nil, "[]"},
		{[]Range{{0, 0x20000}}, nil, "[]"},
		{[]Range{{0x2000, 0x3000}}, nil, "[{4096 8192} {12288 65536}]"},
		{[]Range{{0x2000, 0x3000}, {0x8000, 0x20000}}, nil, "[{4096 8192} {12288 32768}]"},
		{[]Range{{0x2000, 0x5000}}, []Range{{0x3000, 0x4000}}, "[{4096 8192} {12288 16384} {20480 65536}]"},
		{[]Range{{0x1000, 0x10000}}, []Range{{0x1000, 0x10000}}, "[{4096 65536}]"},
		{[]Range{{0x20000, 0x30000}}, []Range{{0x1000, 0x2000}}, "[{4096 65536}]"},
	} {
		l := (&taskFiles{anon: c.anon}).withGaps(c.found, 0x1000, 0x10000)
		if got := fmt.Sprint(l.Fetch); got != c.want || l.End != 0x10000 {
			t.Errorf("mappings %v, found %v: %s until %#x, want %s", c.anon, c.found, got, l.End, c.want)
		}
	}
}

func TestPresent(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	for _, c := range []struct {
		area  string
		pages uint64
	}{{"plain", 200}, {"prot_none", 100}, {"holes", 44}, {"untouched", 0}, {"guard", 0}, {"guard_all", 27}, {"read_only_touched", 0}, {"thp", 512}} {
		a := p.area(t, c.area)
		rs, err := Present(p.pid, a.start, a.start+uint64(a.pages)*PageSize)
		if err != nil || Size(rs) != c.pages*PageSize {
			t.Errorf("%s: %v, %v, want %d pages", c.area, rs, err, c.pages)
		}
	}
	all, err := Present(p.pid, 0, 1<<47-PageSize)
	if err != nil || Size(all) < 1000*PageSize {
		t.Errorf("all: %d bytes, %v", Size(all), err)
	}
	if _, err := Present(p.pid, 1, PageSize); !errors.Is(err, unix.EINVAL) {
		t.Errorf("unaligned: %v", err)
	}
	p.kill()
	if rs, err := Present(p.pid, 0, 1<<30); err == nil {
		t.Errorf("a process that is no more: %v", rs)
	}
}
