// Package park holds a process at a named point, for tests of what happens when a part dies, or the hosts are cut off from each other, just there.
//
// Points of the target, in their order: prepare, images, restore, asked, letgo, resumed, drain, full, files, detach, switch-… (package restore/detach), switched,
// left. Of the source: inject (in its injector), ahead, hot, dump, frozen, grant, granted, hold, drained.
package park

import (
	"log/slog"
	"os"
	"strings"
	"time"
)

// At waits at a point as long as the environment says LAZYMIG_PARK=POINT:FILE and there is no FILE.
func At(log *slog.Logger, point string) {
	at, gate, ok := strings.Cut(os.Getenv("LAZYMIG_PARK"), ":")
	if !ok || at != point {
		return
	}
	log.Warn("parked", "at", point)
	for {
		if _, err := os.Stat(gate); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond) //nolint:forbidigo // a gate of tests: a file has no event that is worth it here
	}
}
