package memory

import (
	"runtime"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestFaults runs each workload with faults only: nothing is pushed.
func TestFaults(t *testing.T) {
	for _, name := range []string{"touch", "fork", "wipe", "remap", "drop"} {
		t.Run(name, func(t *testing.T) {
			kerneltest.Leaks(t)
			w := startWork(t, name)
			e := engineFor(t, w, Options{})
			h := newHandler(e, 2)
			defer h.stop()
			e.SetBringer(h)
			w.go1()
			if name == "wipe" {
				w.await("child")
				w.go1()
			}
			w.wait()
			if s := e.Stats(); s.Faults == 0 || s.PagesCopied == 0 || s.LostPages != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestPush runs them while everything is pushed, until it is drained.
func TestPush(t *testing.T) {
	for _, name := range []string{"touch", "idle", "fork", "remap", "drop", "split"} {
		t.Run(name, func(t *testing.T) {
			kerneltest.Leaks(t)
			w := startWork(t, name)
			e := engineFor(t, w, Options{})
			h := newHandler(e, 2)
			defer h.stop()
			e.SetBringer(h)
			w.go1()
			e.StartBulk()
			switch name {
			case "idle", "split":
				w.await(name)
				waitDrained(t, e)
				w.go1()
			}
			w.wait()
			waitDrained(t, e)
			if s := e.Stats(); !s.Drained || s.Left != 0 || s.Spaces != 0 || s.LostPages != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestChurn lets threads move, unmap, throw away, protect and write memory that is still coming, and give addresses to
// each other by the kernel's choice, while the handler answers in any order, badly, and is replaced all the time. Each
// thread knows what each of its pages has to hold, and looks again when all is drained.
func TestChurn(t *testing.T) {
	for _, c := range []struct {
		name, work string
		bulk, bad  bool
	}{
		{"one thread", "churn1", true, false},
		{"faults only", "churn8", false, false},
		{"eight threads", "churn8", true, false},
		{"bad handlers", "churn8", true, true},
		{"forks", "churnfork", true, false},
		{"forks, bad handlers", "churnfork", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := startWork(t, c.work)
			e := engineFor(t, w, Options{Window: 4, BulkPages: 16})
			h := newHandler(e, 2)
			if c.bad {
				h.fail, h.corrupt, h.repeat = 0.05, 0.02, 0.1
			}
			e.SetBringer(h)
			w.go1()
			if c.bulk {
				e.StartBulk()
			}
			churned := make(chan struct{})
			go func() {
				defer close(churned)
				w.await("churned")
			}()
			if c.bad {
				h = replaceHandlers(e, h, churned)
			}
			<-churned
			defer h.stop()
			if t.Failed() {
				t.FailNow()
			}
			e.StartBulk()
			waitDrained(t, e)
			w.go1()
			w.wait()
			s := e.Stats()
			t.Logf("%+v", s)
			if !s.Drained || s.Left != 0 || s.LostPages != 0 || s.Misfits != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// replaceHandlers kills handlers in the middle of their work, each after it was asked a few times, until the workload
// has churned; now and then there is none for a while.
func replaceHandlers(e *Engine, h *handler, churned <-chan struct{}) *handler {
	for n := 0; ; n++ {
		for asked := false; !asked; {
			select {
			case <-churned:
				return h
			default:
			}
			h.mu.Lock()
			asked = h.asked > 20
			h.mu.Unlock()
			runtime.Gosched()
		}
		h.stop()
		if n%3 == 0 {
			e.SetBringer(nil)
		}
		fail, corrupt, repeat := h.fail, h.corrupt, h.repeat
		h = newHandler(e, 2)
		h.fail, h.corrupt, h.repeat = fail, corrupt, repeat
		e.SetBringer(h)
	}
}
