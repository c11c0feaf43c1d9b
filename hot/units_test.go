package hot

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestEntry(t *testing.T) {
	const frame = 0x123456789 << pageBits
	for _, c := range []struct {
		name              string
		e                 entry
		there, hot, leads bool
		large             bool
	}{
		{name: "nothing"},
		{name: "touched", e: frame | 0x67, there: true, hot: true, leads: true},
		{name: "not touched", e: frame | 0x47, there: true, leads: true},
		{name: "PROT_NONE", e: frame | bitNone | bitAccessed, there: true, hot: true},
		{name: "swapped", e: 0x7ff<<52 | bitAccessed | bitUser | bitWrite},
		{name: "large", e: frame | 0xe7, there: true, hot: true, large: true},
		{name: "large, PROT_NONE, not touched", e: frame | bitLarge | bitNone, there: true, large: true},
		{name: "large, of a swapped page", e: bitLarge},
		{name: "no execution, protection keys", e: 1<<63 | 7<<59 | frame | 0x67, there: true, hot: true, leads: true},
	} {
		if c.e.there() != c.there || c.e.hot() != c.hot || c.e.table() != c.leads || c.e.large() != c.large {
			t.Errorf("%s: there %v, hot %v, table %v, large %v", c.name, c.e.there(), c.e.hot(), c.e.table(), c.e.large())
		}
		if c.there && c.e.physical(48) != frame {
			t.Errorf("%s: at %#x", c.name, c.e.physical(48))
		}
	}
	if p := entry(1<<47 | 0x1000 | 0x67).physical(47); p != 0x1000 {
		t.Errorf("with a bit that says encrypted: %#x", p)
	}
}

// throw marks random pages of n in each round: hot ones with one chance, others with another.
func throw(s *Scores, r *rand.Rand, rounds, n, hot int, often, seldom float64) {
	for range rounds {
		marked := uint64(0)
		for i := range n {
			if c := seldom; i < hot && r.Float64() < often || i >= hot && r.Float64() < c {
				s.Add(1, uint64(i)*pageSize, 1)
				marked++
			}
		}
		s.Round(marked, uint64(n))
	}
}

// TestCut: a hot set is told from chance, whether it is seen wholly in each round or in parts.
func TestCut(t *testing.T) {
	const n = 100_000
	for _, c := range []struct {
		name          string
		rounds, hot   int
		often, seldom float64
		want          int // hot pages that are listed at least
		wrong         int // others, at most
	}{
		{"only the hot set", 16, n / 20, 1, 0, n / 20, 0},
		{"the hot set in parts", 16, n / 20, 0.4, 0, n/20 - 50, 0},
		{"with strays", 16, n / 20, 0.6, 0.005, n/20 - 100, 500},
		{"three rounds", 3, n / 50, 0.9, 0.001, n/50 - 100, 400},
		{"all alike", 16, n, 0.03, 0, 0, 100},
		{"all in each round", 16, n, 1, 0, 0, 0},
		{"idle", 16, n, 0, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewScores()
			throw(s, rand.New(rand.NewPCG(1, 2)), c.rounds, n, c.hot, c.often, c.seldom)
			right, wrong := 0, 0
			for _, sp := range s.List(n) {
				for a := range addresses(sp) {
					if int(a/pageSize) < c.hot {
						right++
					} else {
						wrong++
					}
				}
			}
			if c.name == "all alike" {
				wrong, right = right, 0
			}
			if right < c.want || wrong > c.wrong {
				t.Errorf("%d of %d, and %d others; cut %d", right, c.hot, wrong, s.cut(n))
			}
		})
	}
}

// TestOrder: what was seen oftenest is first, the rest by address, neighbours together.
func TestOrder(t *testing.T) {
	s := NewScores()
	for round := range 8 {
		s.Add(2, 3*leafSpan, 4) // always
		s.Add(1, 5*leafSpan, entries)
		if round%4 == 0 {
			s.Add(1, 0, 1)
		}
		s.Round(1, 100_000)
	}
	want := []Span{{1, 5 * leafSpan, entries / wordPages, math.MaxUint64}, {2, 3 * leafSpan, 1, 0xf}, {1, 0, 1, 1}}
	if got := s.List(100_000); !slices.Equal(got, want) {
		t.Errorf("%v instead of %v", got, want)
	}
}

func TestAddRange(t *testing.T) {
	for _, r := range []Range{{0, pageSize}, {3 * pageSize, 5 * pageSize}, {63 * pageSize, 65 * pageSize}, {pageSize, 3*wordSize + 2*pageSize}, {wordSize, 3 * wordSize}} {
		at := r.Start
		for _, s := range addRange(nil, 1, r) {
			for a := range addresses(s) {
				if a != at {
					t.Fatalf("%v: %#x where %#x follows", r, a, at)
				}
				at += pageSize
			}
		}
		if at != r.End {
			t.Errorf("%v: ends at %#x", r, at)
		}
	}
}

func TestParseUsed(t *testing.T) {
	const text = `7f0000000000-7f0000010000 rw-p 00000000 00:00 0                          [heap]
Rss:                  64 kB
Referenced:           32 kB
VmFlags: rd wr
7f0000020000-7f0000030000 r--p 00000000 08:01 12                         /usr/lib/libc.so
Rss:                  64 kB
Referenced:           64 kB
7f0000040000-7f0000050000 rw-s 00000000 00:01 77                         /memfd:x (deleted)
Rss:                   0 kB
Referenced:            0 kB
`
	got, err := parseUsed([]byte(text))
	if err != nil || len(got) != 1 || got[0].at != (Range{0x7f0000000000, 0x7f0000010000}) || got[0].share() != 8 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseUsed([]byte("7f00-7e00 rw-p 0 00:00 0\n")); err == nil {
		t.Error("a mapping that ends before it begins")
	}
}
