package migrate

import (
	"time"

	"github.com/lazymig/lazymig/wire"
)

// AutoConnections as SourceOptions.Connections: as many as round trip and CPUs suggest, and more as long as each brings more.
const AutoConnections = -1

const (
	// longTrip is the round trip from which on one connection is less than a line may give: what is on its way then is bounded by the kernel's buffers
	// (6 MB by default), and each lost packet halves it.
	longTrip = 20 * time.Millisecond
	// shortTrip: below it only the CPU limits a connection.
	shortTrip = 2 * time.Millisecond
	manyCPUs  = 8
	fewCPUs   = 2
)

// bulkLanes is how many bulk lanes a migration begins with, and how many it may go up to as long as each brings more. asked is what the user wants; AutoConnections:
// what round trip and CPUs suggest. With few CPUs and a short line another connection only takes time from faults.
func bulkLanes(asked int, trip time.Duration, cpus int) (first, most int) {
	if asked != AutoConnections {
		return max(asked, 1), max(asked, 1)
	}
	first, most = 1, 1
	if trip >= shortTrip || cpus > fewCPUs {
		most = wire.MaxBulk
	}
	if trip >= longTrip {
		first++
	}
	if cpus >= manyCPUs {
		first++
	}
	return first, most
}
