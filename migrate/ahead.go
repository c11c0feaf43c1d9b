package migrate

import (
	"errors"
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/ahead"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/restore/memory"
	"github.com/lazymig/lazymig/wire"
)

// Memory that is copied ahead comes over the control lane while the tree runs (MsgAhead) and lies in a memfd of the agent. At the freeze the source
// says which pages are still good (MsgAheadGood); these go to the guardian, all others have never come.

const (
	pageBits   = 12
	wordPages  = 64
	wordBytes  = wordPages * pageSize
	goodRecord = 24 // task 4, address 8, words 4, mask 8
)

// encodeAhead is all of a MsgAhead but the bytes.
func encodeAhead(b *ahead.Batch, buf []byte) []byte {
	e := wire.Encoder{B: buf[:0]}
	e.U32(b.ID)
	e.U32(uint32(len(b.Runs)))
	for _, r := range b.Runs {
		e.U64(r.Addr)
		e.U32(r.Pages)
	}
	return e.B
}

// goodPages makes the messages that say which pages are good, of words of 64 pages: equal neighbours are one record.
type goodPages struct {
	all  [][]byte // payloads without their heads
	cur  wire.Encoder
	n    int
	task uint32
	addr uint64
	mask uint64
	rep  uint32
}

const mostGood = 40_000 // records of a message

func (g *goodPages) add(task uint32, addr, mask uint64) {
	if g.rep > 0 && g.task == task && g.mask == mask && g.addr+uint64(g.rep)*wordBytes == addr {
		g.rep++
		return
	}
	g.put()
	g.task, g.addr, g.mask, g.rep = task, addr, mask, 1
}

func (g *goodPages) put() {
	if g.rep == 0 {
		return
	}
	g.cur.U32(g.task)
	g.cur.U64(g.addr)
	g.cur.U32(g.rep)
	g.cur.U64(g.mask)
	g.rep = 0
	if g.n++; g.n == mostGood {
		g.cut()
	}
}

func (g *goodPages) cut() {
	g.all = append(g.all, g.cur.B)
	g.cur, g.n = wire.Encoder{}, 0
}

// send sends all of them; there is one at least.
func (g *goodPages) send(s *session) error {
	g.put()
	g.cut()
	for i, p := range g.all {
		var e wire.Encoder
		e.Bool(i == len(g.all)-1)
		e.U32(uint32(len(p) / goodRecord))
		if err := s.sendParts(wire.MsgAheadGood, e.B, p); err != nil {
			return err
		}
	}
	return nil
}

// blockPages are two megabytes.
const blockPages = 512

type aheadBlock struct {
	task uint32
	at   uint64 // address / two megabytes
}

// aheadSink takes what is copied ahead. The peer is not trusted: no more than limit bytes are kept.
type aheadSink struct {
	limit    uint64
	f        *os.File // nil before the first page
	slots    map[aheadBlock]*[blockPages]uint32
	next     uint32 // slots that are taken
	received uint64 // pages, also those that came again
	good     []memory.CopiedPages
	named    uint64        // pages in good, or not kept
	whole    chan struct{} // closed when all that is good has been named
	complete bool
	unpack   pagesrv.Unpacking
}

func newAheadSink(limit uint64) *aheadSink {
	return &aheadSink{limit: min(limit, 1<<44), slots: map[aheadBlock]*[blockPages]uint32{}, whole: make(chan struct{})}
}

var errAhead = errors.New("pages copied ahead")

// pages takes one MsgAhead with its flags.
func (s *aheadSink) pages(flags uint16, p []byte) error {
	d := wire.NewDecoder(p)
	task := d.U32()
	n := d.Count(12)
	if n > ahead.BatchPages {
		return fmt.Errorf("%w: %d runs", errAhead, n)
	}
	runs := make([]ahead.Run, n)
	total := uint64(0)
	for i := range runs {
		runs[i] = ahead.Run{Addr: d.U64(), Pages: d.U32()}
		total += uint64(runs[i].Pages)
	}
	data := d.Rest()
	if err := d.End(); err != nil {
		return fmt.Errorf("decode %w: %w", errAhead, err)
	}
	if total > ahead.BatchPages || flags == 0 && uint64(len(data)) != total*pageSize || s.complete || memory.IsObject(task) {
		return fmt.Errorf("%w: %d with %d bytes", errAhead, total, len(data))
	}
	data, err := s.unpack.Unpack(flags, data, int(total)*pageSize)
	if err != nil {
		return fmt.Errorf("%w: %w", errAhead, err)
	}
	for _, r := range runs {
		if r.Addr%pageSize != 0 || r.Addr >= 1<<47 || r.Pages == 0 {
			return fmt.Errorf("%w: %d at %#x", errAhead, r.Pages, r.Addr)
		}
	}
	if s.f == nil {
		fd, err := unix.MemfdCreate("lazymig-ahead", unix.MFD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("keep %w: %w", errAhead, err)
		}
		s.f = os.NewFile(uintptr(fd), "ahead")
	}
	s.received += total
	for _, r := range runs {
		if err := s.keep(task, r, data[:uint64(r.Pages)*pageSize]); err != nil {
			return err
		}
		data = data[uint64(r.Pages)*pageSize:]
	}
	return nil
}

// keep writes pages to their slots, those that lie one behind the other at once.
func (s *aheadSink) keep(task uint32, r ahead.Run, data []byte) error {
	for i := uint32(0); i < r.Pages; {
		first, ok := s.slot(task, r.Addr+uint64(i)*pageSize)
		n := uint32(1)
		for ; ok && i+n < r.Pages; n++ {
			if next, ok := s.slot(task, r.Addr+uint64(i+n)*pageSize); !ok || next != first+n {
				break
			}
		}
		if ok {
			if _, err := s.f.WriteAt(data[uint64(i)*pageSize:uint64(i+n)*pageSize], int64(first)*pageSize); err != nil {
				return fmt.Errorf("keep %w: %w", errAhead, err)
			}
		}
		i += n
	}
	return nil
}

// slot is where a page lies, or will; false: there is no room.
func (s *aheadSink) slot(task uint32, addr uint64) (uint32, bool) {
	k := aheadBlock{task, addr >> pageBits / blockPages}
	b := s.slots[k]
	if b == nil {
		b = new([blockPages]uint32)
		s.slots[k] = b
	}
	p := &b[addr>>pageBits%blockPages]
	if *p == 0 {
		if uint64(s.next+1)*pageSize > s.limit {
			return 0, false
		}
		s.next++
		*p = s.next
	}
	return *p - 1, true
}

// mark takes one MsgAheadGood.
func (s *aheadSink) mark(p []byte) error {
	d := wire.NewDecoder(p)
	last := d.Bool()
	n := d.Count(goodRecord)
	if s.complete {
		return fmt.Errorf("%w: named again", errAhead)
	}
	for range n {
		task, addr, words, mask := d.U32(), d.U64(), uint64(d.U32()), d.U64()
		pages := words * uint64(bits.OnesCount64(mask))
		if addr%wordBytes != 0 || words == 0 || mask == 0 || addr >= 1<<47 || words*wordBytes > 1<<47-addr || s.named+pages > s.received {
			return fmt.Errorf("%w: %d words at %#x are good, %d pages have come", errAhead, words, addr, s.received)
		}
		s.named += pages
		for w := range words {
			s.markWord(task, addr+w*wordBytes, mask)
		}
	}
	if err := d.End(); err != nil {
		return fmt.Errorf("decode %w: %w", errAhead, err)
	}
	if last {
		s.complete = true
		close(s.whole)
	}
	return nil
}

func (s *aheadSink) markWord(task uint32, addr, mask uint64) {
	b := s.slots[aheadBlock{task, addr >> pageBits / blockPages}]
	if b == nil {
		return
	}
	first := addr >> pageBits % blockPages
	for ; mask != 0; mask &= mask - 1 {
		i := uint64(bits.TrailingZeros64(mask))
		slot := b[first+i]
		if slot == 0 {
			continue
		}
		at, off := addr+i*pageSize, uint64(slot-1)*pageSize
		if k := len(s.good); k > 0 {
			if g := &s.good[k-1]; g.Task == task && g.Addr+uint64(g.Pages)*pageSize == at && g.Off+uint64(g.Pages)*pageSize == off {
				g.Pages++
				continue
			}
		}
		s.good = append(s.good, memory.CopiedPages{Task: task, Pages: 1, Addr: at, Off: off})
	}
}

// kept says whether there is something for the guardian.
func (s *aheadSink) kept() bool { return len(s.good) > 0 }

func (s *aheadSink) close() {
	if s == nil {
		return
	}
	s.unpack.Close()
	if s.f != nil {
		s.f.Close()
		s.f = nil
	}
}
