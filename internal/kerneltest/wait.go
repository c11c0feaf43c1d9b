package kerneltest

import (
	"testing"
	"time"
)

// Patience is how long the helpers here wait for an event that must come. It
// is generous: it ends a hang, it does not measure anything.
const Patience = 90 * time.Second

// Eventually waits until cond is true and fails the test if that takes longer
// than [Patience]. It is for events that the kernel does not announce.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !poll(Patience, cond) {
		t.Fatalf("waited %v for: %s", Patience, what)
	}
}

// poll asks cond again and again, often at first.
func poll(limit time.Duration, cond func() bool) bool {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause) //nolint:forbidigo // this is where tests wait for what is not announced
	}
}
