package migrate

import (
	"testing"
	"time"

	"github.com/lazymig/lazymig/wire"
)

func TestBulkLanes(t *testing.T) {
	for name, c := range map[string]struct {
		asked       int
		trip        time.Duration
		cpus        int
		first, most int
	}{
		"two CPUs beside each other": {AutoConnections, 100 * time.Microsecond, 2, 1, 1},
		"two CPUs, a longer line":    {AutoConnections, 6 * time.Millisecond, 2, 1, wire.MaxBulk},
		"across an ocean":            {AutoConnections, 100 * time.Millisecond, 2, 2, wire.MaxBulk},
		"many CPUs":                  {AutoConnections, 100 * time.Microsecond, 32, 2, wire.MaxBulk},
		"nothing said":               {0, 100 * time.Millisecond, 32, 1, 1},
		"as asked":                   {4, 100 * time.Millisecond, 32, 4, 4},
	} {
		if first, most := bulkLanes(c.asked, c.trip, c.cpus); first != c.first || most != c.most {
			t.Errorf("%s: %d, up to %d", name, first, most)
		}
	}
	for _, bad := range []prepareMsg{{Connections: -1}, {MostConnections: wire.MaxBulk + 1}} {
		bad.PIDs = []int32{1}
		if bad.check() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
