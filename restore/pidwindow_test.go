package restore

import (
	"errors"
	"testing"
)

func TestPIDWindow(t *testing.T) {
	for _, c := range []struct {
		name string
		pids []int32
		max  int
		base int
		fail bool
	}{
		{name: "none", max: 32768, base: 28671},
		{name: "low", pids: []int32{5, 6, 7}, max: 32768, base: 28671},
		{name: "low in a large space", pids: []int32{1000, 1001}, max: 4194304, base: 28671},
		{name: "high in a large space", pids: []int32{100000}, max: 4194304, base: 28671},
		{name: "below", pids: []int32{20000, 20001}, max: 32768, base: 15903},
		{name: "in between, unsorted, twice", pids: []int32{30000, 2000, 30000, 2000}, max: 32768, base: 25903},
		{name: "dense below", pids: []int32{7000, 14000, 21000, 28000}, max: 4194304, base: 4190207},
		{name: "small space", pids: []int32{1000, 2000}, max: 2600, base: 1000},
		{name: "init", pids: []int32{1, 5}, max: 32768, fail: true},
		{name: "zero", pids: []int32{0}, max: 32768, fail: true},
		{name: "negative", pids: []int32{-4}, max: 32768, fail: true},
		{name: "above the limit", pids: []int32{32768}, max: 32768, fail: true},
		{name: "full", pids: []int32{500, 700, 900}, max: 1000, fail: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			base, err := pidWindow(c.pids, c.max)
			if (err != nil) != c.fail || err != nil && !errors.Is(err, ErrPIDs) {
				t.Fatalf("error %v, want one: %v", err, c.fail)
			}
			if base != c.base {
				t.Fatalf("base %d, want %d", base, c.base)
			}
			if err == nil {
				for _, p := range c.pids {
					if int(p) > base && int(p) <= base+windowLeast {
						t.Fatalf("%d lies in the window above %d", p, base)
					}
				}
			}
		})
	}
}
