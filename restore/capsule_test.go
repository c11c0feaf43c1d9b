package restore

import (
	"context"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// event waits for one of a kind; others before it are passed over, problems told.
func event(t *testing.T, c *Capsule, kind EventKind) Event {
	t.Helper()
	for {
		select {
		case e, ok := <-c.Events():
			if !ok {
				t.Fatalf("the capsule ended before event %s", kind)
			}
			if e.Kind == kind {
				return e
			}
			if e.Kind == EventProblem {
				t.Errorf("problem: %s", e.Text)
			}
		case <-time.After(kerneltest.Patience):
			t.Fatalf("no event %s", kind)
		}
	}
}

// An eager restore: the capsule alone, without memory engine and handler.
func TestEagerRestore(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	tr := startTree(t, 8)
	pids := tr.tids(t)
	dir := tr.dump(t)
	tr.kill() // its PIDs are free in the capsule either way; but only one may run
	before := tr.counters()

	c := startCapsule(t, Options{ImagesDir: dir, Hostname: "capsule-test", PIDs: pids})
	if err := c.Restore(testContext(t), RestoreOptions{NotLazy: true}); err != nil {
		t.Fatal(err)
	}
	if tr.counters() != before {
		t.Fatal("the held tree has run")
	}
	early := time.Now()
	r, err := c.Release(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if r.At.Before(early.Add(-time.Second)) || r.At.After(time.Now()) {
		t.Errorf("resumed at %v, now %v", r.At, time.Now())
	}
	tr.running(t)
	tr.verify(t)
	if tr.get(boxHost) != hostHash("capsule-test") {
		t.Error("host name is another")
	}
	if err := unix.Kill(r.PID, 0); err != nil {
		t.Errorf("root task %d: %v", r.PID, err)
	}
	tr.set(boxCommand, 2)
	if e := event(t, c, EventExited); unix.WaitStatus(e.Status).ExitStatus() != 7 {
		t.Errorf("exit status %#x, want 7", e.Status)
	}
	select {
	case <-c.Done():
	case <-time.After(kerneltest.Patience):
		t.Error("the guardian lives on without a process")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/work"); err == nil {
		t.Error("work directory is left")
	}
}
