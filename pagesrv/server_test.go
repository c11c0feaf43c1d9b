package pagesrv

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/internal/pagemap"
	"github.com/lazymig/lazymig/wire"
)

// TestEveryPage compares each page of each kind of memory, whatever way the requests cut it.
func TestEveryPage(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	if len(p.areas) < 20 && pagemap.Probe().Guard {
		t.Fatalf("the program made %d areas only", len(p.areas))
	}
	for _, legacy := range []bool{false, true} {
		s := newServer(t, Task{uint32(p.pid), p.pid})
		s.legacy = s.legacy || legacy
		c := newClient(t)
		attach(t, s, c, wire.LaneUrgent)
		attach(t, s, c, wire.LaneBulk)
		for _, lane := range []wire.Lane{wire.LaneUrgent, wire.LaneBulk} {
			for _, step := range []uint32{64, 1, 7} {
				t.Run(fmt.Sprintf("%v/%d/legacy=%v", lane, step, legacy), func(t *testing.T) {
					for _, a := range p.areas {
						for i := uint32(0); i < a.pages; i += step {
							checkPages(t, c, lane, p, a, i, min(step, a.pages-i))
						}
					}
				})
			}
		}
		if st := s.Stats(); st.Bulk.DataPages == 0 || st.Bulk.DataPages != st.Urgent.DataPages || st.Bulk.ZeroPages != st.Urgent.ZeroPages ||
			st.Bulk.Bytes > st.Bulk.DataPages*PageSize || st.Bulk.Requests == 0 || st.Bulk.Errors != 0 {
			t.Errorf("stats %+v", st)
		}
	}
}

func checkPages(t *testing.T, c *Client, lane wire.Lane, p *target, a area, first, n uint32) {
	t.Helper()
	req := Request{uint32(p.pid), a.start + uint64(first)*PageSize, n}
	g, err := fetch(t, c, lane, req)
	if err != nil {
		t.Fatalf("%s: %v", a.name, err)
	}
	if len(g.kinds) != int(n) {
		t.Fatalf("%s: %d pages of %d", a.name, len(g.kinds), n)
	}
	checkGot(t, p, a, first, n, g)
}

// checkGot compares what came for pages of an area.
func checkGot(t *testing.T, p *target, a area, first, n uint32, g got) {
	t.Helper()
	req := Request{uint32(p.pid), a.start + uint64(first)*PageSize, n}
	last := make([]byte, PageSize)
	last[PageSize-1] = 7
	for i := range n {
		addr, want, bytesWanted := req.Addr+uint64(i)*PageSize, KindData, []byte(nil)
		switch a.expect {
		case "any":
			continue
		case "data":
			bytesWanted = pattern(addr)
		case "third":
			if want = KindZero; (first+i)%3 == 0 {
				want, bytesWanted = KindData, pattern(addr)
			}
		case "last7":
			bytesWanted = last
		case "zero":
			want = KindZero
		case "guard":
			want = KindGuard
		case "poison":
			want = KindPoison
		case "error":
			want = KindError
			if g.kinds[i] == KindData && (a.name == "file" || a.name == "shared") {
				continue // mapped at this moment by fault-around: bytes of the file, right as well
			}
		default:
			t.Fatalf("unknown expectation %q", a.expect)
		}
		if g.kinds[i] != want {
			t.Fatalf("%s: page %d of request at %d+%d is %v (%v), want %v", a.name, first+i, first, n, g.kinds[i], g.errno[i], want)
		}
		if bytesWanted != nil && !bytes.Equal(g.pages[i], bytesWanted) {
			t.Fatalf("%s: page %d of request at %d+%d has wrong bytes", a.name, first+i, first, n)
		}
		if want == KindError && g.errno[i] != unix.EFAULT {
			t.Fatalf("%s: page %d: errno %v", a.name, first+i, g.errno[i])
		}
	}
}

func TestCloseTwice(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	s := newServer(t, Task{uint32(p.pid), p.pid})
	c := newClient(t)
	ended := attach(t, s, c, wire.LaneBulk)
	if _, err := fetch(t, c, wire.LaneBulk, Request{uint32(p.pid), p.area(t, "plain").start, 1}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "end of Serve", ended)
	a, _ := pair(t)
	if err := s.Serve(t.Context(), a, wire.LaneBulk); !errors.Is(err, ErrClosed) {
		t.Errorf("serve when closed: %v", err)
	}
	if err := c.Fetch(wire.LaneBulk, Request{1, PageSize, 1}, make([]byte, PageSize), nil); !errors.Is(err, ErrLaneLost) {
		t.Errorf("fetch when closed: %v", err)
	}
}
