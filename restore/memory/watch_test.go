package memory

import (
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/kerneltest"
)

// loopHandler is a handler whose answers are taken by the engine's loop: urgent ones in Read, others in Work.
type loopHandler struct {
	t    *testing.T
	e    *Engine
	near *fdpass.Socket // watched
	far  *fdpass.Socket // wakes it

	mu    sync.Mutex
	queue []Want

	bulk  []Want // the loop's
	fail  error  // what Read says when told "fail"
	ended chan error
}

func newLoopHandler(t *testing.T, e *Engine) *loopHandler {
	t.Helper()
	near, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	far, err := fdpass.New(peer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	h := &loopHandler{t: t, e: e, near: near, far: far, fail: errHandlerGone, ended: make(chan error, 2)}
	if err := e.Watch(h); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *loopHandler) Ask(w Want) error {
	h.mu.Lock()
	h.queue = append(h.queue, w)
	h.mu.Unlock()
	return h.far.Send([]byte("go"))
}

func (h *loopHandler) FD() int { return h.near.FD() }

func (h *loopHandler) Read() error {
	buf := make([]byte, 16)
	for {
		n, _, err := h.near.TryRecv(buf)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return err
		}
		if string(buf[:n]) == "fail" {
			return h.fail
		}
	}
	h.mu.Lock()
	q := h.queue
	h.queue = nil
	h.mu.Unlock()
	for _, w := range q {
		if !w.Urgent {
			h.bulk = append(h.bulk, w)
			continue
		}
		runs, data := sourcePages(w.Addr, w.Pages)
		if err := h.e.Brought(w.ID, runs, data); err != nil {
			return err
		}
	}
	return nil
}

func (h *loopHandler) Work() bool {
	if len(h.bulk) == 0 {
		return false
	}
	w := h.bulk[0]
	h.bulk = h.bulk[1:]
	runs, data := sourcePages(w.Addr, w.Pages)
	if err := h.e.BroughtInLoop(w.ID, runs, data); err != nil && !errors.Is(err, ErrClosed) {
		h.t.Error(err)
	}
	return len(h.bulk) > 0
}

func (h *loopHandler) Ended(err error) { h.ended <- err }

func (h *loopHandler) end() error {
	h.t.Helper()
	select {
	case err := <-h.ended:
		return err
	case <-time.After(deadline):
		h.t.Fatal("the watched is not ended")
		return nil
	}
}

// Everything goes through the loop: a workload is drained while its threads fault, its handler is replaced in the middle,
// and each is ended once.
func TestWatch(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "touch")
	e := engineFor(t, w, Options{})
	first := newLoopHandler(t, e)
	e.SetBringer(first)
	w.go1()
	e.StartBulk()
	if err := first.far.Send([]byte("fail")); err != nil {
		t.Fatal(err)
	}
	if err := first.end(); !errors.Is(err, errHandlerGone) {
		t.Errorf("ended with %v", err)
	}
	second := newLoopHandler(t, e)
	e.SetBringer(second)
	waitDrained(t, e)
	w.wait()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if err := second.end(); !errors.Is(err, ErrClosed) {
		t.Errorf("ended with %v", err)
	}
	if err := e.Watch(second); !errors.Is(err, ErrClosed) {
		t.Errorf("watch with a closed engine: %v", err)
	}
	if len(first.ended)+len(second.ended) > 0 {
		t.Error("ended twice")
	}
}
