package pagesrv

import (
	"fmt"
	"slices"
	"syscall"

	"github.com/lazymig/lazymig/internal/pagemap"
	"github.com/lazymig/lazymig/wire"
)

// Layout tells which pages of a range have to be fetched. All others up to End are zero: that is proven as in an answer to Fetch.
// So a sparse mapping of terabytes costs a few requests.
type Layout struct {
	End   uint64 // how far it goes: ask again from here
	Fetch []Range
}

// LayoutRequest asks for the layout of [Start, End) of a task.
type LayoutRequest struct {
	Task       uint32
	Start, End uint64
}

const (
	layoutSize = 20
	maxRanges  = 2 * scanVec // of an answer
)

func (r LayoutRequest) check() error {
	if r.Start%PageSize != 0 || r.End%PageSize != 0 || r.Start >= r.End || r.End > maxAddr {
		return fmt.Errorf("layout of %#x-%#x: %w", r.Start, r.End, syscall.EINVAL)
	}
	return nil
}

func (r LayoutRequest) encode() []byte {
	var e wire.Encoder
	e.U32(r.Task)
	e.U64(r.Start)
	e.U64(r.End)
	return e.B
}

func parseLayoutRequest(b []byte) (LayoutRequest, error) {
	d := wire.NewDecoder(b)
	r := LayoutRequest{Task: d.U32(), Start: d.U64(), End: d.U64()}
	if err := d.End(); err != nil {
		return LayoutRequest{}, fmt.Errorf("decode layout request: %w: %w", ErrProtocol, err)
	}
	return r, nil
}

func (l Layout) encode() []byte {
	var e wire.Encoder
	e.U64(l.End)
	e.U32(uint32(len(l.Fetch)))
	for _, r := range l.Fetch {
		e.U64(r.Start)
		e.U64(r.End)
	}
	return e.B
}

func parseLayout(b []byte, req LayoutRequest) (Layout, error) {
	d := wire.NewDecoder(b)
	l := Layout{End: d.U64()}
	n := d.Count(16)
	if n > maxRanges {
		return Layout{}, fmt.Errorf("decode layout: %w: %d ranges", ErrProtocol, n)
	}
	at := req.Start
	for range n {
		r := Range{d.U64(), d.U64()}
		if d.Err() == nil && (r.Start < at || r.End <= r.Start || r.Start%PageSize != 0 || r.End%PageSize != 0) {
			return Layout{}, fmt.Errorf("decode layout: %w: range %#x-%#x", ErrProtocol, r.Start, r.End)
		}
		l.Fetch, at = append(l.Fetch, r), r.End
	}
	if err := d.End(); err != nil {
		return Layout{}, fmt.Errorf("decode layout: %w: %w", ErrProtocol, err)
	}
	if l.End <= req.Start || l.End > req.End || l.End < at || l.End%PageSize != 0 {
		return Layout{}, fmt.Errorf("decode layout: %w: layout of %#x-%#x ends at %#x, its last range at %#x", ErrProtocol, req.Start, req.End, l.End, at)
	}
	return l, nil
}

// layout makes the layout of a range.
func (t *task) layout(req LayoutRequest, legacy bool) (Layout, error) {
	var out Layout
	err := t.use(func(f *taskFiles) error {
		scan := scanRanges
		if legacy {
			scan = readRanges
		}
		found, end, err := scan(f.pagemap, req.Start, req.End, pagemap.Guard, nil)
		if err != nil {
			return fmt.Errorf("scan task %d at %#x: %w", t.id, req.Start, err)
		}
		out = f.withGaps(found, req.Start, end)
		if err := t.scanHeld(f); err != nil {
			return err
		}
		return t.exists()
	})
	return out, err
}

// withGaps adds to what a scan found in [start, end) what absence does not make zero, so that Fetch says what is there.
// Where that is too much for an answer it stops short.
func (f *taskFiles) withGaps(found []Range, start, end uint64) Layout {
	l := Layout{End: end}
	at := start
	for _, r := range append(slices.Clip(found), Range{end, end}) {
		for at < r.Start {
			i, ok := f.mapping(at)
			next := r.Start
			switch {
			case ok:
				next = min(next, f.anon[i].End)
			case i < len(f.anon):
				next = min(next, f.anon[i].Start)
				fallthrough
			default:
				l.Fetch = appendRange(l.Fetch, Range{at, next})
			}
			at = next
			if len(l.Fetch) == maxRanges {
				l.End = at
				return l
			}
		}
		if r.Start < r.End {
			l.Fetch = appendRange(l.Fetch, r)
			at = r.End
			if len(l.Fetch) == maxRanges {
				l.End = at
				return l
			}
		}
	}
	return l
}

// mapping finds the private anonymous mapping at addr, or the next one above.
func (f *taskFiles) mapping(addr uint64) (int, bool) {
	i, _ := slices.BinarySearchFunc(f.anon, addr, func(r Range, a uint64) int {
		if r.End <= a {
			return -1
		}
		return 1
	})
	return i, i < len(f.anon) && f.anon[i].Start <= addr
}

// zeroWhenAbsent tells whether the range lies in private anonymous mappings.
func (f *taskFiles) zeroWhenAbsent(start, end uint64) bool {
	i, ok := f.mapping(start)
	return ok && end <= f.anon[i].End
}

// layout answers MsgLayout. A scan may be long, so it counts as bulk on either lane.
func (sv *serving) layout(id uint64, p []byte) error {
	req, err := parseLayoutRequest(p)
	if err != nil {
		return err
	}
	sv.stats.requests.Add(1)
	if err := req.check(); err != nil {
		return sv.fail(id, err)
	}
	l, err := sv.s.layout(req)
	if err != nil {
		return sv.fail(id, err)
	}
	return sv.c.Send(wire.MsgLaid, 0, id, l.encode())
}

func (s *Server) layout(req LayoutRequest) (Layout, error) {
	if IsObject(req.Task) {
		return s.shared.layout(req)
	}
	t, err := s.task(req.Task)
	if err != nil {
		return Layout{}, err
	}
	return t.layout(req, s.legacy)
}

// Layout asks for the layout of a range, under the rules of Fetch. The answer may stop short of the range's end.
func (c *Client) Layout(kind wire.Lane, req LayoutRequest, done func(Layout, error)) error {
	if err := req.check(); err != nil {
		return err
	}
	return c.send(kind, wire.MsgLayout, 0, req.encode(), &call{laying: req, layout: done})
}

// laid reads the answer to a Layout.
func (l *lane) laid(h wire.Header, cl *call) (Layout, error) {
	if h.Length > 12+maxRanges*16 {
		return Layout{}, fmt.Errorf("decode layout: %w: %d bytes", ErrProtocol, h.Length)
	}
	p, err := l.c.ReadPayload(h, nil)
	if err != nil {
		return Layout{}, err
	}
	return parseLayout(p, cl.laying)
}
