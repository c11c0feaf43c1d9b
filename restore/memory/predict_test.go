package memory

import (
	"math/rand/v2"
	"testing"
)

const walkPages = 1 << 18

// walkModel is a region whose pages come at once: those around a fault, and those that are planned.
type walkModel struct {
	t             *testing.T
	p             predictor
	r             *region
	here          map[int]bool
	touched       map[int]bool
	there, faults int
	planned, past int
}

func newWalkModel(t *testing.T) *walkModel {
	return &walkModel{t: t, r: &region{pages: walkPages}, here: map[int]bool{}, touched: map[int]bool{}}
}

// touch counts a page that has not been touched before.
func (m *walkModel) touch(page int) {
	page = (page%walkPages + walkPages) % walkPages
	if m.touched[page] {
		return
	}
	m.touched[page] = true
	if m.here[page] {
		m.there++
		return
	}
	m.faults++
	pl := m.p.fault(m.r, page)
	m.past += pl.past
	m.bring(around(page, 8, pl.walk()))
	for i := range pl.n {
		m.planned++
		if p := pl.first + i*pl.trend; pl.walk() != 0 {
			m.bring(p, p+1)
		} else {
			m.bring(around(p, 8, 0))
		}
	}
	if pl.past < 0 || m.past > m.planned {
		m.t.Fatalf("%d of %d planned pages have been passed: %+v", m.past, m.planned, pl)
	}
}

func (m *walkModel) bring(first, last int) {
	for ; first < last; first++ {
		m.here[first] = true
	}
}

// rate is the share of touches that found the page.
func (m *walkModel) rate() float64 { return float64(m.there) / float64(m.there+m.faults) }

func TestPredictor(t *testing.T) {
	stride := func(k int) func(*walkModel) {
		return func(m *walkModel) {
			for i := range 1200 {
				m.touch(100 + i*k)
			}
		}
	}
	for _, c := range []struct {
		name string
		run  func(*walkModel)
	}{
		{"up", stride(1)},
		{"down", stride(-1)},
		{"by 2", stride(2)},
		{"by 7", stride(7)},
		{"by 8", stride(8)},
		{"by 13", stride(13)},
		{"by 33, down", stride(-33)},
		{"by 32", stride(32)},
		{"by 64", stride(64)},
		{"by 100", stride(100)},
		{"by 200, down", stride(-200)},
		{"eight threads", func(m *walkModel) {
			for i := range 2000 {
				for k := range 8 {
					m.touch(k*walkPages/8 + i*(k%3+1))
				}
			}
		}},
		{"up and by 90", func(m *walkModel) {
			for i := range 1200 {
				m.touch(i)
				m.touch(walkPages/2 + 90*i)
			}
		}},
		{"up, one in ten somewhere else", func(m *walkModel) {
			r := rand.New(rand.NewPCG(1, 1))
			for i := range 4000 {
				m.touch(i)
				if i%10 == 0 {
					m.touch(walkPages/2 + r.IntN(walkPages/2))
					m.faults-- // nobody could know
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newWalkModel(t)
			c.run(m)
			t.Logf("%.1f %% there of %d, %d planned, %d passed", 100*m.rate(), len(m.touched), m.planned, m.past)
			if m.rate() < 0.9 {
				t.Errorf("%d of %d touches found nothing", m.faults, m.there+m.faults)
			}
			if 4*m.past < m.planned {
				t.Errorf("of %d planned pages only %d have been passed", m.planned, m.past)
			}
		})
	}
}

// Where there is nothing to see, next to nothing is planned.
func TestPredictorRandom(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		m := newWalkModel(t)
		for range 4000 {
			m.touch(r.IntN(walkPages))
		}
		if m.planned > m.faults {
			t.Errorf("%d pages were planned after %d faults at random", m.planned, m.faults)
		}
	}
}

// Many regions take turns in the same few streams.
func TestPredictorBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	var p predictor
	regions := make([]*region, 3*maxStreams)
	for i := range regions {
		regions[i] = &region{pages: 1 << 20}
	}
	for range 20000 {
		g := regions[r.IntN(len(regions))]
		pl := p.fault(g, r.IntN(4)*100+r.IntN(1<<r.IntN(20)))
		if pl.n < 0 || pl.n > mostPages || pl.trend == 0 && pl.n > 0 || pl.trend != 0 && pl.walk() == 0 && pl.n > mostSteps {
			t.Fatalf("%+v", pl)
		}
		if len(p.streams) > maxStreams {
			t.Fatal("too many streams")
		}
	}
}
