package memory

import (
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// copiedBefore is a buffer with two of three stretches of the workload's memory, in an order of its own.
func copiedBefore(t *testing.T, w *work) (*os.File, []CopiedPages) {
	t.Helper()
	fd, err := unix.MemfdCreate("ahead", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "ahead")
	t.Cleanup(func() { f.Close() })
	var list []CopiedPages
	off := int64(w.region.End - w.region.Start)
	for a, k := w.region.Start, uint64(0); a < w.region.End; k++ {
		n := min(1+mix(k)%97, (w.region.End-a)/pageSize)
		if k%3 != 0 {
			off -= int64(n * pageSize)
			at := a
			list = append(list, CopiedPages{Task: w.pid(), Pages: uint32(n), Addr: a, Off: uint64(off)})
			runs, data := sourcePages(a, uint32(n))
			for _, r := range runs {
				l := int(r.Pages) * pageSize
				if r.Kind == Data {
					if _, err := f.WriteAt(data[:l], off+int64(at-a)); err != nil {
						t.Fatal(err)
					}
					data = data[l:]
				}
				at += uint64(l)
			}
		}
		a += n * pageSize
	}
	if err := f.Truncate(int64(w.region.End - w.region.Start)); err != nil {
		t.Fatal(err)
	}
	return f, list
}

// TestCopied runs workloads of whose memory two thirds have been copied ahead: they see the same bytes, and the source is not asked for what is here.
func TestCopied(t *testing.T) {
	for _, c := range []struct {
		work  string
		early bool // faults come before anything is placed
	}{{"touch", true}, {"fork", true}, {"idle", false}, {"split", false}, {"remap", false}, {"drop", true}, {"churn8", true}, {"churnfork", false}} {
		t.Run(c.work, func(t *testing.T) {
			kerneltest.Leaks(t)
			w := startWork(t, c.work)
			e := engineFor(t, w, Options{Window: 4, BulkPages: 16})
			f, list := copiedBefore(t, w)
			h := &handler{e: e}
			var mu sync.Mutex
			again := 0 // pages that were asked for though they are here
			h.pages = func(addr uint64, n uint32) ([]Run, []byte) {
				mu.Lock()
				defer mu.Unlock()
				for _, x := range list {
					if lo, hi := max(addr, x.Addr), min(addr+uint64(n)*pageSize, x.Addr+uint64(x.Pages)*pageSize); lo < hi {
						again += int(hi-lo) / pageSize
					}
				}
				return sourcePages(addr, n)
			}
			h.start(2)
			defer h.stop()
			e.SetBringer(h)
			if err := e.Copied(f, list); err != nil {
				t.Fatal(err)
			}
			if err := e.Copied(f, list); err == nil {
				t.Error("a second buffer was taken")
			}
			filled := e.Filled()
			w.go1()
			if !c.early {
				e.PlaceCopied()
			}
			e.StartBulk()
			switch c.work {
			case "churn8", "churnfork":
				w.await("churned")
			case "idle", "split":
				w.await(c.work)
			}
			e.PlaceCopied()
			waitDrained(t, e)
			if c.work == "churn8" || c.work == "churnfork" || c.work == "idle" || c.work == "split" {
				w.go1()
			}
			w.wait()
			s := e.Stats()
			if !s.Drained || s.Left != 0 || s.LostPages != 0 || s.CopiedPages == 0 {
				t.Errorf("%+v", s)
			}
			if c.work == "idle" {
				<-filled
				if again > 0 {
					t.Errorf("%d pages that are here were asked for", again)
				}
			}
		})
	}
}

// TestFilled: it is told when all has come that is not in the buffer, of which nothing has been placed.
func TestFilled(t *testing.T) {
	kerneltest.Leaks(t)
	w := startWork(t, "idle")
	e := engineFor(t, w, Options{Window: 4, BulkPages: 16})
	f, list := copiedBefore(t, w)
	h := newHandler(e, 2)
	defer h.stop()
	e.SetBringer(h)
	if err := e.Copied(f, list); err != nil {
		t.Fatal(err)
	}
	w.go1()
	e.StartBulk()
	select {
	case <-e.Filled():
	case <-time.After(deadline):
		t.Fatal("never filled")
	}
	left := uint64(0)
	for _, x := range list {
		left += uint64(x.Pages)
	}
	if s := e.Stats(); s.Left != left || s.CopiedPages != 0 {
		t.Errorf("%d pages are ahead: %+v", left, s)
	}
	e.PlaceCopied()
	w.await("idle")
	waitDrained(t, e)
	w.go1()
	w.wait()
}

func TestCopiedChecks(t *testing.T) {
	w := startWork(t, "touch")
	e := engineFor(t, w, Options{})
	f, list := copiedBefore(t, w)
	for what, change := range map[string]func(x *CopiedPages){
		"no pages":      func(x *CopiedPages) { x.Pages = 0 },
		"odd address":   func(x *CopiedPages) { x.Addr++ },
		"odd offset":    func(x *CopiedPages) { x.Off++ },
		"behind end":    func(x *CopiedPages) { x.Off = w.region.End - w.region.Start },
		"over the end":  func(x *CopiedPages) { x.Off, x.Pages = w.region.End-w.region.Start-pageSize, 2 },
		"kernel's half": func(x *CopiedPages) { x.Addr = 1 << 57 },
	} {
		bad := append([]CopiedPages(nil), list...)
		change(&bad[0])
		if err := e.Copied(f, bad); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}
