package migrate

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestForecast(t *testing.T) {
	const mb, gb = 1 << 20, 1 << 30
	of := func(memory, rate, writes float64) conditions {
		return conditions{memory: memory, room: 16 * gb, rate: rate, writes: writes, growth: 1, random: true, busy: 0.5, tracked: true, allowed: 300 * time.Millisecond}
	}
	room := of(8*gb, gb, 100*mb)
	room.room = 0
	idle := of(gb, gb, 0)
	idle.busy = 0
	blind := of(gb, gb, 0)
	blind.tracked = false
	for _, c := range []struct {
		what string
		conditions
		want []string
	}{
		{"idle, large", of(8*gb, gb, 0), []string{ModeHybrid, ModePre}},
		{"some writes", of(8*gb, 200*mb, 40*mb), []string{ModeHybrid, ModePre}},
		{"a storm", of(2*gb, 100*mb, 4*gb), []string{ModePost}},
		{"nobody does anything", idle, []string{ModePost}},
		{"no room", room, []string{ModePost}},
		{"no tracking", blind, []string{ModePost}},
	} {
		if f := c.best(); !slices.Contains(c.want, f.Mode) {
			t.Errorf("%s: %v; of %v", c.what, f, c.forecast())
		}
	}
	c := of(gb, gb, 0)
	c.room, c.trip = gb, time.Millisecond
	f := c.forecast()
	if p := f[ModePost]; p.DowntimeMS != ms(basePause)+2 || p.DrainMS != 1000 || p.StallMS <= 0 || p.StallMS >= p.DrainMS || p.Bytes != gb || p.AheadMS != 0 {
		t.Errorf("post: %+v", p)
	}
	if s := f[ModeStop]; s.DowntimeMS != ms(basePause)+1002 || s.DrainMS != 0 || s.StallMS != 0 {
		t.Errorf("stop: %+v", s)
	}
	if h := f[ModeHybrid]; h.AheadMS != 1000 || h.DrainMS != 0 || h.Bytes != gb || h.StallMS >= f[ModePost].StallMS {
		t.Errorf("hybrid of what nobody writes: %+v", h)
	}
	c.writes = gb
	if h := c.forecast()[ModeHybrid]; h.DrainMS < 600 || h.DrainMS > 4000 || h.Bytes <= gb {
		t.Errorf("hybrid of what is written: %+v", h)
	}
	c.tracked = false
	if f := c.forecast(); len(f) != 2 || len(c.outlook().Forecasts) != 2 {
		t.Errorf("without tracking: %v", f)
	}
}

// TestCount: what two looks at the same writes say of those that follow.
func TestCount(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		what         string
		early, dirty float64
		runs         int
		growth       float64
		random       bool
	}{
		{"nothing", 0, 0, 0, 1, true},
		{"other pages all the time, anywhere", 2 * mb, 7.76 * mb, 2000, 1, true},
		{"one page after the other", 2 * mb, 8 * mb, 1, 1, false},
		{"always the same, anywhere", 8 * mb, 8 * mb, 2000, 0, true},
		{"all of it", 95 * mb, 99 * mb, 1, 1, true},
		{"some more often than others", 4 * mb, 7.84 * mb, 2000, 0.5, true},
	} {
		f := conditions{memory: 100 * mb}
		f.count(c.early, c.dirty, c.runs, writesTime/4, writesTime)
		if math.Abs(f.growth-c.growth) > 0.01 || f.random != c.random || f.seen != c.dirty/writesTime.Seconds() || f.writes < f.seen {
			t.Errorf("%s: %+v", c.what, f)
		}
	}
}
