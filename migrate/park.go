package migrate

import (
	"log/slog"
	"os"
	"strings"
	"time"
)

// park holds the caller at a named point, for tests of what happens when a host dies or is cut there: LAZYMIG_PARK=POINT:FILE waits
// until FILE exists. Points: images, restore, asked, letgo, drain, detach, switched, left, switch-… (target; the last is of package restore/detach); grant, granted, hold (source).
func park(log *slog.Logger, point string) {
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
