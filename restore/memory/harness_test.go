package memory

import (
	"bytes"
	_ "embed"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/kerneltest"
)

// deadline is how long an event may take before a test gives up.
const deadline = 90 * time.Second

//go:embed testdata/work.c
var workC string

// work is a running testdata/work.c.
type work struct {
	t      testing.TB
	cmd    *exec.Cmd
	sock   *fdpass.Socket
	uffd   *os.File
	region Region
	stderr bytes.Buffer
	ended  chan struct{}
	err    error
}

func startWork(t testing.TB, args ...string) *work {
	t.Helper()
	bin := kerneltest.CompileC(t, workC)
	sock, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	w := &work{t: t, sock: sock, ended: make(chan struct{})}
	w.cmd = exec.Command(bin, args...)
	w.cmd.ExtraFiles = []*os.File{peer}
	w.cmd.Stderr = &w.stderr
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	go func() {
		w.err = w.cmd.Wait()
		close(w.ended)
	}()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		<-w.ended
		sock.Close()
		if t.Failed() {
			t.Logf("workload: %s", w.stderr.Bytes())
		}
	})
	var m [2]uint64
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&m)), 16)
	n, files, err := w.recv(buf)
	if err != nil || n != 16 || len(files) != 1 {
		t.Fatalf("receive userfaultfd: %d bytes, %d files, %v", n, len(files), err)
	}
	w.region, w.uffd = Region{Start: m[0], End: m[1]}, files[0]
	return w
}

func (w *work) recv(buf []byte) (n int, files []*os.File, err error) {
	w.t.Helper()
	got := make(chan struct{})
	go func() {
		n, files, err = w.sock.Recv(buf)
		close(got)
	}()
	select {
	case <-got:
	case <-time.After(deadline):
		_ = w.cmd.Process.Kill()
		w.t.Fatal("workload says nothing")
	}
	return n, files, err
}

func (w *work) pid() uint32 { return uint32(w.cmd.Process.Pid) }

// await waits for a word from the workload.
func (w *work) await(word string) {
	w.t.Helper()
	var buf [64]byte
	n, _, err := w.recv(buf[:])
	if err != nil || string(buf[:n]) != word {
		<-w.ended
		w.t.Fatalf("workload said %q, %v, not %q; %v", buf[:max(n, 0)], err, word, w.err)
	}
}

func (w *work) go1() {
	w.t.Helper()
	if err := w.sock.Send([]byte{1}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *work) wait() {
	w.t.Helper()
	select {
	case <-w.ended:
		if w.err != nil {
			w.t.Fatalf("workload: %v", w.err)
		}
	case <-time.After(deadline):
		w.t.Fatal("workload does not end")
	}
}

// source is what the source has: the pattern of testdata/work.c.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func sourcePages(addr uint64, n uint32) (runs []Run, data []byte) {
	for i := range uint64(n) {
		a := addr + i*pageSize
		kind := Data
		if mix(a>>12)%5 == 0 {
			kind = Zero
		}
		if l := len(runs); l > 0 && runs[l-1].Kind == kind {
			runs[l-1].Pages++
		} else {
			runs = append(runs, Run{kind, 1})
		}
		if kind == Data {
			for o := uint64(0); o < pageSize; o += 8 {
				w := mix(a + o)
				data = append(data, byte(w), byte(w>>8), byte(w>>16), byte(w>>24), byte(w>>32), byte(w>>40), byte(w>>48), byte(w>>56))
			}
		}
	}
	return runs, data
}

// handler brings the source's pages, in a random order, and as badly as it is told to.
type handler struct {
	e            *Engine
	fail, repeat float64 // how many wants fail, or are answered twice
	corrupt      float64 // answers that do not fit
	pages        func(addr uint64, n uint32) ([]Run, []byte)
	objects      func(Want) ([]Run, []byte) // of shared objects; nil: there are none

	mu      sync.Mutex
	cond    *sync.Cond
	queue   []Want
	held    bool // answers nothing
	stopped bool
	wg      sync.WaitGroup
	asked   int
}

func newHandler(e *Engine, workers int) *handler {
	h := &handler{e: e, pages: sourcePages}
	h.start(workers)
	return h
}

func (h *handler) start(workers int) {
	h.cond = sync.NewCond(&h.mu)
	for i := range workers {
		h.wg.Add(1)
		go h.run(rand.New(rand.NewPCG(uint64(i), 7)))
	}
}

var errHandlerGone = errors.New("handler is gone")

func (h *handler) Ask(w Want) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return errHandlerGone
	}
	h.asked++
	h.queue = append(h.queue, w)
	h.cond.Broadcast()
	return nil
}

func (h *handler) run(r *rand.Rand) {
	defer h.wg.Done()
	for {
		h.mu.Lock()
		for !h.stopped && (len(h.queue) == 0 || h.held) {
			h.cond.Wait()
		}
		if h.stopped {
			h.mu.Unlock()
			return
		}
		i := r.IntN(len(h.queue))
		w := h.queue[i]
		h.queue = append(h.queue[:i], h.queue[i+1:]...)
		h.mu.Unlock()
		runs, data := h.answer(w)
		switch p := r.Float64(); {
		case p < h.fail:
			h.e.Failed(w.ID, unix.ECONNRESET)
		case p < h.fail+h.corrupt:
			_ = h.e.Brought(w.ID, runs[:len(runs)-1], data)
		case p < h.fail+h.corrupt+h.repeat:
			_ = h.e.Brought(w.ID, runs, data)
			_ = h.e.Brought(w.ID, runs, data)
		default:
			_ = h.e.Brought(w.ID, runs, data)
		}
	}
}

// answer is what a want is answered with: one range after the other, as if they were one.
func (h *handler) answer(w Want) (runs []Run, data []byte) {
	for i := -1; i < len(w.More); i++ {
		part := w
		if part.More = nil; i >= 0 {
			part.Addr, part.Pages = w.More[i].Addr, w.More[i].Pages
		}
		var more []Run
		var d []byte
		if IsObject(w.Task) {
			more, d = h.objects(part)
		} else {
			more, d = h.pages(part.Addr, part.Pages)
		}
		if l := len(runs); l > 0 && len(more) > 0 && runs[l-1].Kind == more[0].Kind {
			runs[l-1].Pages += more[0].Pages
			more = more[1:]
		}
		runs, data = append(runs, more...), append(data, d...)
	}
	return runs, data
}

func (h *handler) hold(on bool) {
	h.mu.Lock()
	h.held = on
	h.cond.Broadcast()
	h.mu.Unlock()
}

// stop is a kill: what it was asked for is lost.
func (h *handler) stop() {
	h.mu.Lock()
	h.stopped = true
	h.cond.Broadcast()
	h.mu.Unlock()
	h.wg.Wait()
}

// logTo makes the engine's log the test's, and counts errors: there must be none.
func logTo(t testing.TB) *slog.Logger {
	b := &logBuffer{}
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.errors > 0 {
			t.Errorf("the engine logged errors:\n%s", b.buf.Bytes())
		} else if t.Failed() {
			t.Logf("engine:\n%s", b.buf.Bytes())
		}
	})
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type logBuffer struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	errors int
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if bytes.Contains(p, []byte("level=ERROR")) {
		b.errors++
	}
	if b.buf.Len() < 64<<10 {
		b.buf.Write(p)
	}
	return len(p), nil
}

// engineFor makes an engine with the workload as its only task.
func engineFor(t testing.TB, w *work, o Options) *Engine {
	t.Helper()
	o.Tasks = []TaskMem{{ID: w.pid(), Regions: []Region{w.region}}}
	o.Log = logTo(t)
	if o.Ranges == 0 {
		o.Ranges = 8 // as it is with a source that knows how
	}
	e := New(o)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := e.AddTask(w.pid(), w.uffd); err != nil {
		t.Fatal(err)
	}
	return e
}

func waitDrained(t testing.TB, e *Engine) {
	t.Helper()
	select {
	case <-e.Drained():
	case <-time.After(deadline):
		t.Fatalf("not drained: %+v", e.Stats())
	}
}
