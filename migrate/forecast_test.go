package migrate

import (
	"testing"
	"time"
)

func TestForecast(t *testing.T) {
	const mb, gb = 1 << 20, 1 << 30
	for _, c := range []struct {
		what string
		conditions
		want string
	}{
		{"idle, large", conditions{memory: 8 * gb, room: 16 * gb, rate: gb, allowed: 300 * time.Millisecond}, ModeHybrid},
		{"some writes", conditions{memory: 8 * gb, room: 16 * gb, rate: gb, writes: 100 * mb, allowed: 300 * time.Millisecond}, ModeHybrid},
		{"a storm", conditions{memory: 2 * gb, room: 16 * gb, rate: 100 * mb, writes: 4 * gb, allowed: 300 * time.Millisecond}, ModePost},
		{"no room", conditions{memory: 8 * gb, room: 0, rate: gb, writes: 100 * mb, allowed: 300 * time.Millisecond}, ModePost},
	} {
		if f := c.best(); f.Mode != c.want {
			t.Errorf("%s: %v; of %v", c.what, f, c.forecast())
		}
	}
	c := conditions{memory: gb, room: gb, rate: gb, trip: time.Millisecond}
	f := c.forecast()
	if p := f[ModePost]; p.DowntimeMS != 42 || p.DrainMS != 1000 || p.Bytes != gb || p.AheadMS != 0 {
		t.Errorf("post: %+v", p)
	}
	if s := f[ModeStop]; s.DowntimeMS != 1042 || s.DrainMS != 0 {
		t.Errorf("stop: %+v", s)
	}
	if h := f[ModeHybrid]; h.AheadMS != 1000 || h.DrainMS != 0 || h.Bytes != gb {
		t.Errorf("hybrid of what nobody writes: %+v", h)
	}
	c.writes = gb
	if h := c.forecast()[ModeHybrid]; h.DrainMS < 500 || h.DrainMS > 700 || h.Bytes <= gb {
		t.Errorf("hybrid of what is written: %+v", h)
	}
}
