package memory

import (
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		name string
		r    result
		want outcome
	}{
		{"all", result{0, 8192, 8192}, outcome{actDone, 8192}},
		{"a part", result{unix.EAGAIN, 4096, 8192}, outcome{actGoOn, 4096}},
		{"a part, not whole pages", result{unix.EAGAIN, 5000, 8192}, outcome{actGoOn, 4096}},
		{"less than a page", result{unix.EAGAIN, 5, 8192}, outcome{actSettle, 0}},
		{"more than asked for", result{unix.EAGAIN, 16384, 8192}, outcome{actDone, 8192}},
		{"changing", result{unix.EAGAIN, -int64(unix.EAGAIN), 8192}, outcome{actSettle, 0}},
		{"there", result{unix.EEXIST, -int64(unix.EEXIST), 8192}, outcome{actSkip, 0}},
		{"no VMA for all", result{unix.ENOENT, -int64(unix.ENOENT), 8192}, outcome{actHalve, 0}},
		{"no VMA", result{unix.ENOENT, -int64(unix.ENOENT), 4096}, outcome{actMissing, 0}},
		{"no mm, out field not written", result{unix.ESRCH, 0, 8192}, outcome{actDead, 0}},
		{"no memory", result{unix.ENOMEM, -int64(unix.ENOMEM), 8192}, outcome{actLater, 0}},
		{"interrupted", result{unix.EINTR, 0, 8192}, outcome{actLater, 0}},
		{"source not readable", result{unix.EFAULT, -int64(unix.EFAULT), 8192}, outcome{actFatal, 0}},
		{"not aligned", result{unix.EINVAL, 0, 8192}, outcome{actFatal, 0}},
	} {
		if got := classify(c.r); got != c.want {
			t.Errorf("%s: %+v, not %+v", c.name, got, c.want)
		}
	}
}

// FuzzLayout does cuts, puts and moves on a layout and on a plain map of pages.
func FuzzLayout(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		b := make([]byte, 4*(1+r.IntN(60)))
		for i := range b {
			b[i] = byte(r.UintN(256))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		type cell struct {
			r   *region
			off int
		}
		regions := []*region{nil, {pages: 64}, {pages: 64}}
		var l layout
		model := map[int]cell{}
		for ; len(ops) >= 4; ops = ops[4:] {
			from, n, to := int(ops[1]%64), 1+int(ops[2]%16), int(ops[3]%64)
			switch ops[0] % 4 {
			case 0: // cut
				var want []cell
				for i := from; i < from+n; i++ {
					if c, ok := model[i]; ok {
						want = append(want, c)
						delete(model, i)
					}
				}
				var got []cell
				for _, s := range l.cut(at(from), at(from+n)) {
					for a := s.start; a < s.end; a += pageSize {
						got = append(got, cell{s.r, s.page(a)})
					}
				}
				if len(got) != len(want) {
					t.Fatalf("cut %d pages, not %d", len(got), len(want))
				}
				for i := range got {
					if got[i].r != want[i].r || got[i].r != nil && got[i] != want[i] {
						t.Fatalf("cut %v, not %v", got[i], want[i])
					}
				}
			case 1: // put
				g := regions[ops[3]%3]
				l.put(segment{start: at(from), end: at(from + n), r: g, off: int(ops[3] / 4 % 32)})
				for i := range n {
					model[from+i] = cell{g, int(ops[3]/4%32) + i}
				}
			default: // move
				if from < to+n && to < from+n {
					continue
				}
				l.move(at(from), at(to), uint64(n)*pageSize)
				for i := range n {
					c, ok := model[from+i]
					if !ok {
						c = cell{}
					}
					model[to+i] = c
					model[from+i] = cell{}
				}
			}
			for i := range 96 {
				s, ok := l.find(at(i))
				c, has := model[i]
				if ok != has || ok && (s.r != c.r || s.r != nil && s.page(at(i)) != c.off) {
					t.Fatalf("page %d: %+v %v, not %+v %v", i, s, ok, c, has)
				}
			}
			for i, s := range l.segs {
				if s.start >= s.end || i > 0 && (l.segs[i-1].end > s.start || l.segs[i-1].joins(s)) {
					t.Fatalf("not sorted, or not joined: %+v", l.segs)
				}
			}
		}
	})
}

func FuzzBits(f *testing.F) {
	f.Add(uint16(100), []byte{1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add(uint16(64), []byte{0, 0, 64, 1, 0, 64})
	f.Fuzz(func(t *testing.T, n uint16, ops []byte) {
		size := 1 + int(n)*7%(2*chunkBits+300)
		b := newBitset(size)
		model := make([]bool, size)
		for ; len(ops) >= 3; ops = ops[3:] {
			i := int(ops[1]) * 641 % size
			j := i + int(ops[2])*int(ops[0])*7%(size-i+1)
			if ops[0]%8 > 5 {
				i, j = 0, size
			}
			if ops[0]%2 == 0 {
				b.set(i, j)
			} else {
				b.clear(i, j)
			}
			for k := i; k < j; k++ {
				model[k] = ops[0]%2 == 0
			}
			left, clear, set := 0, size, size
			for k := size - 1; k >= 0; k-- {
				if model[k] {
					set = k
				} else {
					left++
					clear = k
				}
				if b.has(k) != model[k] || b.nextClear(k, size) != clear || b.nextSet(k, size) != set {
					t.Fatalf("bit %d", k)
				}
			}
			if b.left != left {
				t.Fatalf("left %d, not %d", b.left, left)
			}
		}
	})
}

func TestHistogram(t *testing.T) {
	var h histogram
	if h.quantile(0.5) != 0 {
		t.Error("empty")
	}
	for i := range 1000 {
		h.add(time.Duration(i) * time.Microsecond)
	}
	for _, c := range []struct {
		q        float64
		low, top uint64
	}{{0, 0, 0}, {0.5, 440, 499}, {0.99, 896, 989}, {1, 896, 999}} {
		if got := h.quantile(c.q); got < c.low || got > c.top {
			t.Errorf("quantile %v: %d", c.q, got)
		}
	}
	h.add(1 << 62)
	for us := range uint64(1 << 12) {
		b := bucket(us)
		if b > 0 && bucket(us-1) > b {
			t.Fatalf("bucket of %d", us)
		}
	}
}
