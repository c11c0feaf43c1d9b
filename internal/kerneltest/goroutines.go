package kerneltest

import (
	"runtime"
	"strings"
)

// quiet are goroutines that the runtime or the testing package keeps. A test's
// own goroutine has testing.tRunner in its stack, one that it started has not.
var quiet = []string{
	"testing.(*T).Run(", "testing.tRunner(", "testing.(*M).", "testing.runTests(", "testing.(*F).",
	"os/signal.loop(", "os/signal.signal_recv(", "runtime.ensureSigM", "runtime.ReadTrace(",
	"internal/kerneltest.goroutines(",
}

// goroutines maps a goroutine's number to its stack.
func goroutines() (map[string]string, error) {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	seen := map[string]string{}
next:
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		head, _, _ := strings.Cut(g, "\n")
		id, _, ok := strings.Cut(strings.TrimPrefix(head, "goroutine "), " ")
		if !ok {
			continue
		}
		for _, q := range quiet {
			if strings.Contains(g, q) {
				continue next
			}
		}
		seen[id] = g
	}
	return seen, nil
}
