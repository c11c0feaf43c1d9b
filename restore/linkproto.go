package restore

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/restore/memory"
	"github.com/lazymig/lazymig/wire"
)

// Between guardian and handler: one message a datagram. The bytes of pages go through slots of a memfd which both have
// mapped; the guardian says which slot a want is for, and reads it only when its answer came.
const (
	linkWelcome = 1 // guardian → handler: slots u32; descriptor: the memfd
	linkWant    = 2 // guardian → handler
	linkBrought = 3 // handler → guardian
	linkFailed  = 4 // handler → guardian
	linkSurvey  = 5 // guardian → handler: what is there in a range? needs no slot
	linkFound   = 6 // handler → guardian
)

const (
	slotSize  = pagesrv.MaxPages * pagesrv.PageSize
	slotCount = 64
	urgentOwn = 24 // slots that bulk wants never take
)

const (
	noSlot    = ^uint32(0)
	maxFound  = 4096 // ranges in an answer; pagesrv's are bounded by half of it
	foundSize = 16
	spanSize  = 12
)

// slotWant is a want that has got a slot, or a survey.
type slotWant struct {
	seq  uint64 // of this link
	slot uint32
	want memory.Want
	end  uint64 // of a survey of [want.Addr, end); 0: a want
}

func (w slotWant) encode() []byte {
	e := wire.Encoder{B: make([]byte, 0, 40)}
	if w.end != 0 {
		e.U8(linkSurvey)
		e.U64(w.seq)
		e.U32(w.want.Task)
		e.U64(w.want.Addr)
		e.U64(w.end)
		return e.B
	}
	e.U8(linkWant)
	e.U64(w.seq)
	e.U32(w.slot)
	e.U32(w.want.Task)
	e.U64(w.want.Addr)
	e.U32(w.want.Pages)
	e.Bool(w.want.Urgent)
	e.Bool(w.want.Prefetch)
	if len(w.want.More) > 0 {
		e.U32(uint32(len(w.want.More)))
		for _, s := range w.want.More {
			e.U64(s.Addr)
			e.U32(s.Pages)
		}
	}
	return e.B
}

// fits says whether a want can be asked for, and has room in a slot.
func fits(w memory.Want) bool {
	if w.Pages == 0 || w.Total() > pagesrv.MaxPages || len(w.More) >= pagesrv.MaxParts || len(w.More) > 0 && (w.Urgent || w.Prefetch) {
		return false
	}
	return !slices.ContainsFunc(w.More, func(s memory.Span) bool { return s.Pages == 0 })
}

// linkMessage is any message of a link, decoded.
type linkMessage struct {
	kind  uint8
	slots uint32 // welcome
	slotWant
	bytes uint32 // brought
	runs  []memory.Run
	found pagesrv.Layout
	err   error // failed
}

func welcome() []byte {
	e := wire.Encoder{}
	e.U8(linkWelcome)
	e.U32(slotCount)
	return e.B
}

func brought(w slotWant, runs []pagesrv.Run, n int) []byte {
	e := wire.Encoder{B: make([]byte, 0, 21+5*len(runs))}
	e.U8(linkBrought)
	e.U64(w.seq)
	e.U32(w.slot)
	e.U32(uint32(n))
	e.U32(uint32(len(runs)))
	for _, r := range runs {
		e.U8(uint8(r.Kind))
		e.U32(r.Pages)
	}
	return e.B
}

func found(w slotWant, l pagesrv.Layout) []byte {
	e := wire.Encoder{B: make([]byte, 0, 21+foundSize*len(l.Fetch))}
	e.U8(linkFound)
	e.U64(w.seq)
	e.U64(l.End)
	e.U32(uint32(len(l.Fetch)))
	for _, r := range l.Fetch {
		e.U64(r.Start)
		e.U64(r.End)
	}
	return e.B
}

func failed(w slotWant, err error) []byte {
	e := wire.Encoder{}
	e.U8(linkFailed)
	e.U64(w.seq)
	e.U32(w.slot)
	t := textOf(err)
	e.U32(uint32(t.Errno))
	e.String(t.Text)
	return e.B
}

func parseLink(b []byte) (linkMessage, error) {
	d := wire.NewDecoder(b)
	m := linkMessage{kind: d.U8()}
	switch m.kind {
	case linkWelcome:
		m.slots = d.U32()
	case linkWant:
		m.seq, m.slot = d.U64(), d.U32()
		m.want = memory.Want{Task: d.U32(), Addr: d.U64(), Pages: d.U32(), Urgent: d.Bool(), Prefetch: d.Bool()}
		if d.Len() > 0 { // further ranges
			n := d.Count(spanSize)
			if n == 0 || n >= pagesrv.MaxParts {
				return m, fmt.Errorf("decode message of a link: %d more ranges: %w", n, wire.ErrLong)
			}
			for range n {
				m.want.More = append(m.want.More, memory.Span{Addr: d.U64(), Pages: d.U32()})
			}
		}
	case linkBrought:
		m.seq, m.slot, m.bytes = d.U64(), d.U32(), d.U32()
		n := d.Count(5)
		if n > pagesrv.MaxPages {
			return m, fmt.Errorf("decode message of a link: %d runs: %w", n, wire.ErrLong)
		}
		for range n {
			m.runs = append(m.runs, memory.Run{Kind: d.U8(), Pages: d.U32()})
		}
	case linkSurvey:
		m.seq, m.slot = d.U64(), noSlot
		m.want = memory.Want{Task: d.U32(), Addr: d.U64()}
		m.end = d.U64()
	case linkFound:
		m.seq, m.slot = d.U64(), noSlot
		m.found.End = d.U64()
		n := d.Count(foundSize)
		if n > maxFound {
			return m, fmt.Errorf("decode message of a link: %d ranges: %w", n, wire.ErrLong)
		}
		for range n {
			m.found.Fetch = append(m.found.Fetch, pagesrv.Range{Start: d.U64(), End: d.U64()})
		}
	case linkFailed:
		m.seq, m.slot = d.U64(), d.U32()
		e := &errorText{Errno: unix.Errno(d.U32())}
		e.Text = d.String(maxErrorText)
		m.err = e
	default:
		return m, fmt.Errorf("decode message of a link: kind %d", m.kind)
	}
	if err := d.End(); err != nil {
		return m, fmt.Errorf("decode message of a link: %w", err)
	}
	return m, nil
}

// check compares what a handler says it brought with what was wanted. The engine never sees an answer that does not fit.
func (m linkMessage) check(want memory.Want) error {
	var pages, data uint64
	for _, r := range m.runs {
		pages += uint64(r.Pages)
		if pagesrv.Kind(r.Kind) == pagesrv.KindData {
			data += uint64(r.Pages)
		}
	}
	if pages != want.Total() || data*pagesrv.PageSize != uint64(m.bytes) {
		return fmt.Errorf("handler brought %d pages, %d of them with %d bytes, where %d pages were wanted", pages, data, m.bytes, want.Total())
	}
	return nil
}

func mapSlots(fd, n int) ([]byte, error) {
	b, err := unix.Mmap(fd, 0, n*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map slots: %w", err)
	}
	return b, nil
}

func slotOf(mem []byte, i uint32) []byte { return mem[int(i)*slotSize : (int(i)+1)*slotSize] }
