package pagesrv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// prose is a page that can be compressed.
func prose(page int) []byte {
	var b []byte
	for i := 0; len(b) < PageSize; i++ {
		b = fmt.Appendf(b, "page %d has a line %d that says next to nothing. ", page, i)
	}
	return b[:PageSize]
}

// TestPacked fetches prose, noise and zeros, packed in each way: they are the same, and fewer bytes went over the line.
func TestPacked(t *testing.T) {
	const id, pages = 1 << 31, MaxPages
	for mode, least := range map[string]bool{CompressNone: false, CompressS2: true, CompressZstd: true} {
		t.Run(mode, func(t *testing.T) {
			kerneltest.Leaks(t)
			fd, err := unix.MemfdCreate("object", unix.MFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), "object")
			want := make([]byte, pages*PageSize)
			for i := range pages {
				switch i % 5 {
				case 0:
					copy(want[i*PageSize:], pattern(uint64(i)*PageSize))
				case 4:
				default:
					copy(want[i*PageSize:], prose(i))
				}
			}
			if _, err := f.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			s, err := NewServer(ServerOptions{Objects: []Object{{ID: id, File: f}}, Compress: mode})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			c := newClient(t)
			attach(t, s, c, wire.LaneUrgent)
			attach(t, s, c, wire.LaneBulk)
			for range 3 {
				for _, lane := range []wire.Lane{wire.LaneUrgent, wire.LaneBulk} {
					g, err := fetch(t, c, lane, Request{Task: id, Pages: pages})
					if err != nil {
						t.Fatal(err)
					}
					for i := range pages {
						if w := want[i*PageSize : (i+1)*PageSize]; g.kinds[i] == KindData && !bytes.Equal(g.pages[i], w) || (g.kinds[i] == KindZero) != bytes.Equal(w, zeroPage[:]) {
							t.Fatalf("page %d on %v is %v, or others' bytes", i, lane, g.kinds[i])
						}
					}
				}
			}
			st := s.Stats()
			if st.Urgent.Bytes != st.Urgent.DataPages*PageSize {
				t.Errorf("urgent: %d bytes for %d pages", st.Urgent.Bytes, st.Urgent.DataPages)
			}
			if packed := st.Bulk.Bytes < st.Bulk.DataPages*PageSize/2; packed != least {
				t.Errorf("bulk: %d bytes for %d pages", st.Bulk.Bytes, st.Bulk.DataPages)
			}
		})
	}
	if _, err := NewServer(ServerOptions{Compress: "lha"}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a server that compresses by lha: %v", err)
	}
}

// A source that packs what it must not, or something else, is left.
func TestPackedWrong(t *testing.T) {
	p, err := packers()
	if err != nil {
		t.Fatal(err)
	}
	long := bytes.Repeat([]byte("abcdefgh"), 3*PageSize/8)
	for name, c := range map[string]struct {
		lane  wire.Lane
		flags uint16
		data  []byte
	}{
		"on the urgent lane": {wire.LaneUrgent, wire.FlagS2, long[:2*PageSize]},
		"both ways":          {wire.LaneBulk, wire.FlagS2 | wire.FlagZstd, long[:2*PageSize]},
		"an unknown way":     {wire.LaneBulk, 64, long[:2*PageSize]},
		"the other way":      {wire.LaneBulk, wire.FlagZstd, long[:2*PageSize]},
		"too much":           {wire.LaneBulk, wire.FlagS2, long},
		"too little":         {wire.LaneBulk, wire.FlagS2, long[:PageSize]},
	} {
		t.Run(name, func(t *testing.T) {
			kerneltest.Leaks(t)
			cl := newClient(t)
			a, b := pair(t)
			cl.Attach(c.lane, b)
			failed := make(chan error, 1)
			if err := cl.Fetch(c.lane, Request{Task: 1, Pages: 2}, make([]byte, 2*PageSize), func(_ Reply, err error) { failed <- err }); err != nil {
				t.Fatal(err)
			}
			h, _, err := a.Recv()
			if err != nil {
				t.Fatal(err)
			}
			packed, ok := p.pack(packedS2, nil, c.data)
			if !ok {
				t.Fatal("it can't be packed")
			}
			if err := a.Send(wire.MsgPaged, c.flags, h.ID, appendRuns(nil, []Run{{Kind: KindData, Pages: 2}}), packed); err != nil {
				t.Fatal(err)
			}
			if err := await(t, "failure", failed); !errors.Is(err, ErrProtocol) {
				t.Errorf("it ends with %v", err)
			}
			_ = a.Close()
		})
	}
}

// FuzzUnpack: what a peer sends fills exactly what it has to, or is refused.
func FuzzUnpack(f *testing.F) {
	p, err := packers()
	if err != nil {
		f.Fatal(err)
	}
	for _, how := range []packing{packedS2, packedZstd} {
		for _, n := range []int{1, 2, 40} {
			b, _ := p.pack(how, nil, bytes.Repeat(prose(n), n))
			f.Add(uint16(how), uint8(n), b)
		}
	}
	f.Add(uint16(packedZstd), uint8(1), []byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, how uint16, pages uint8, src []byte) {
		dst := make([]byte, int(pages)*PageSize)
		around := append(dst, 1, 2, 3)
		var u unpacker
		defer u.close()
		if err := u.unpack(packing(how), dst, src); err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatal(err)
		}
		if !bytes.Equal(around[len(dst):], []byte{1, 2, 3}) {
			t.Fatal("bytes behind the pages were written")
		}
	})
}

// chosen is what a chooser takes when line and packings are as given, in ns a byte.
func chosen(line float64, s2, zstd, s2Ratio, zstdRatio float64) packing {
	c := newChooser(CompressAuto)
	const n = 1 << 20
	for range 3 {
		c.sent(n, time.Duration(line*n))
		c.packed(packedS2, n, int(s2Ratio*n), time.Duration(s2*n))
		c.packed(packedZstd, n, int(zstdRatio*n), time.Duration(zstd*n))
	}
	how, _ := c.next(packings)
	return how
}

func TestChooser(t *testing.T) {
	for name, c := range map[string]struct {
		line, s2, zstd, s2Ratio, zstdRatio float64
		want                               packing
	}{
		"a fast line":      {1.2, 1, 3, 0.5, 0.4, unpacked},
		"1 Gbit/s":         {8, 1.2, 3.5, 0.5, 0.4, packedS2},
		"100 Mbit/s":       {80, 1.2, 3.5, 0.5, 0.4, packedZstd},
		"noise":            {80, 0.05, 0.1, 1, 1, unpacked},
		"a busy processor": {8, 12, 35, 0.5, 0.4, unpacked},
	} {
		if got := chosen(c.line, c.s2, c.zstd, c.s2Ratio, c.zstdRatio); got != c.want {
			t.Errorf("%s: packing %d, not %d", name, got, c.want)
		}
	}
	r := rand.New(rand.NewPCG(2, 2))
	for range 1000 {
		line, cost, ratio := r.Float64()*100, r.Float64()*20, r.Float64()
		if how := chosen(line, cost, 2*cost, ratio, ratio); how != unpacked && cost+ratio*line > line {
			t.Errorf("at %.2f ns a byte of line, packing that costs %.2f and leaves %.2f was chosen", line, cost, ratio)
		}
	}
	c := newChooser(CompressAuto)
	if how, sample := c.next(packings); how != unpacked || !sample {
		t.Error("nothing is known, and no sample is taken")
	}
	if how, sample := c.next(0); how != unpacked || sample {
		t.Error("packed for a peer that does not know how")
	}
	if how, _ := newChooser(CompressZstd).next(packedS2); how != unpacked {
		t.Error("packed in a way that the peer does not know")
	}
}

// What is pushed over a line that is limited gets packed by itself.
func TestPacksByItself(t *testing.T) {
	kerneltest.Leaks(t)
	const id = 1 << 31
	fd, err := unix.MemfdCreate("object", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "object")
	for i := range MaxPages {
		if _, err := f.WriteAt(prose(i), int64(i)*PageSize); err != nil {
			t.Fatal(err)
		}
	}
	s, err := NewServer(ServerOptions{Objects: []Object{{ID: id, File: f}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 20 {
		s.chooser.sent(1<<20, time.Second)
	}
	a, b := pair(t)
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), a, wire.LaneBulk) }()
	c := newClient(t)
	c.Attach(wire.LaneBulk, b)
	for range 2 { // the first one is sampled
		if _, err := fetch(t, c, wire.LaneBulk, Request{Task: id, Pages: MaxPages}); err != nil {
			t.Fatal(err)
		}
	}
	if st := s.Stats().Bulk; st.Bytes > 3*st.DataPages*PageSize/4 {
		t.Errorf("%d bytes for %d pages", st.Bytes, st.DataPages)
	}
	_ = c.Close()
	if err := await(t, "end", done); err != nil {
		t.Error(err)
	}
}
