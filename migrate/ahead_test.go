package migrate

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/lazymig/lazymig/ahead"
	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/wire"
)

func aheadMessage(b ahead.Batch) []byte { return append(encodeAhead(&b, nil), b.Data...) }

// goodMessages are the payloads that goodPages sends.
func goodMessages(g *goodPages) (all [][]byte) {
	g.put()
	g.cut()
	for i, p := range g.all {
		var e wire.Encoder
		e.Bool(i == len(g.all)-1)
		e.U32(uint32(len(p) / goodRecord))
		all = append(all, append(e.B, p...))
	}
	return all
}

// TestAheadSink sends pages of two tasks in batches, some of them again, names some of them good, and finds exactly these, with the bytes that came last.
func TestAheadSink(t *testing.T) {
	kerneltest.Leaks(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	s := newAheadSink(1 << 30)
	defer s.close()
	type key struct {
		task uint32
		addr uint64
	}
	want := map[key]byte{}
	var pack []*pagesrv.Packing
	for _, how := range []string{pagesrv.CompressNone, pagesrv.CompressS2, pagesrv.CompressZstd} {
		p, err := pagesrv.NewPacking(how)
		if err != nil {
			t.Fatal(err)
		}
		pack = append(pack, p)
	}
	hows := map[uint16]int{}
	for n := range 400 {
		b := ahead.Batch{ID: 1 + rnd.Uint32N(2)}
		at := 0x7f00_0000_0000 + rnd.Uint64N(3000)*pageSize
		for range 1 + rnd.IntN(3) {
			n := 1 + rnd.Uint32N(20)
			b.Runs = append(b.Runs, ahead.Run{Addr: at, Pages: n})
			for range n {
				v := byte(rnd.Uint32())
				want[key{b.ID, at}] = v
				b.Data = append(b.Data, bytes.Repeat([]byte{v}, pageSize)...)
				at += pageSize
			}
			at += rnd.Uint64N(40) * pageSize
		}
		// Compressed or not, in turns.
		data, flags := pack[n%len(pack)].Pack(b.Data)
		if err := s.pages(flags, append(encodeAhead(&b, nil), data...)); err != nil {
			t.Fatal(err)
		}
		hows[flags]++
	}
	if hows[0] == 0 || hows[wire.FlagS2] == 0 || hows[wire.FlagZstd] == 0 {
		t.Errorf("compressed: %v", hows)
	}
	good := map[key]bool{}
	var g goodPages
	for task := uint32(1); task <= 2; task++ {
		for addr := uint64(0x7f00_0000_0000); addr < 0x7f00_0100_0000; addr += wordBytes {
			mask := uint64(0)
			for i := range uint64(wordPages) {
				if _, came := want[key{task, addr + i*pageSize}]; came && rnd.IntN(4) > 0 {
					mask |= 1 << i
					good[key{task, addr + i*pageSize}] = true
				}
			}
			if mask != 0 {
				g.add(task, addr, mask)
			}
		}
	}
	for _, p := range goodMessages(&g) {
		if err := s.mark(p); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-s.whole:
	default:
		t.Fatal("not complete")
	}
	page := make([]byte, pageSize)
	for _, x := range s.good {
		for i := range uint64(x.Pages) {
			k := key{x.Task, x.Addr + i*pageSize}
			if !good[k] {
				t.Fatalf("%+v is taken, and was not named, or twice", k)
			}
			delete(good, k)
			if _, err := s.f.ReadAt(page, int64(x.Off+i*pageSize)); err != nil || !bytes.Equal(page, bytes.Repeat([]byte{want[k]}, pageSize)) {
				t.Fatalf("%+v holds %d…, want %d: %v", k, page[0], want[k], err)
			}
		}
	}
	if len(good) != 0 {
		t.Errorf("%d good pages are not taken", len(good))
	}
	if err := s.pages(0, aheadMessage(ahead.Batch{ID: 1, Runs: []ahead.Run{{Addr: 0x1000, Pages: 1}}, Data: page})); err == nil {
		t.Error("a page is taken after the last word")
	}
}

// TestAheadBounds: a peer can't make the sink keep more than its limit, name what has not come, or do work without end.
func TestAheadBounds(t *testing.T) {
	kerneltest.Leaks(t)
	s := newAheadSink(10 * pageSize)
	defer s.close()
	for i := range uint64(20) {
		if err := s.pages(0, aheadMessage(ahead.Batch{ID: 1, Runs: []ahead.Run{{Addr: i * pageSize, Pages: 1}}, Data: make([]byte, pageSize)})); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := s.f.Stat(); err != nil || fi.Size() > 10*pageSize {
		t.Errorf("%d bytes are kept: %v", fi.Size(), err)
	}
	for what, b := range map[string]ahead.Batch{
		"no page":            {ID: 1, Runs: []ahead.Run{{Addr: 0}}},
		"an odd address":     {ID: 1, Runs: []ahead.Run{{Addr: 1, Pages: 1}}, Data: make([]byte, pageSize)},
		"a kernel's address": {ID: 1, Runs: []ahead.Run{{Addr: 1 << 47, Pages: 1}}, Data: make([]byte, pageSize)},
		"too few bytes":      {ID: 1, Runs: []ahead.Run{{Addr: 0, Pages: 2}}, Data: make([]byte, pageSize)},
		"too many pages":     {ID: 1, Runs: []ahead.Run{{Addr: 0, Pages: ahead.BatchPages + 1}}, Data: make([]byte, (ahead.BatchPages+1)*pageSize)},
		"shared memory":      {ID: 1 << 31, Runs: []ahead.Run{{Addr: 0, Pages: 1}}, Data: make([]byte, pageSize)},
	} {
		if err := s.pages(0, aheadMessage(b)); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	for _, g := range []struct {
		addr, mask uint64
		words      uint32
	}{{0, 1<<21 - 1, 1}, {0, 1, 21}, {0, 1, 1 << 30}, {pageSize, 1, 1}, {0, 0, 1}, {0, 1, 0}, {1 << 47, 1, 1}} {
		gp := &goodPages{task: 1, addr: g.addr, mask: g.mask, rep: g.words}
		if g.words == 0 {
			gp.rep = 1
		}
		p := goodMessages(gp)[0]
		if g.words == 0 {
			copy(p[17:], make([]byte, 4))
		}
		if err := s.mark(p); err == nil {
			t.Errorf("%+v is taken", g)
		}
	}
	gp := &goodPages{task: 1, mask: 1<<20 - 1, rep: 1}
	if err := s.mark(goodMessages(gp)[0]); err != nil {
		t.Error(err)
	}
	if n := len(s.good); n != 1 || s.good[0].Pages != 10 {
		t.Errorf("good: %s", fmt.Sprint(s.good))
	}
}
