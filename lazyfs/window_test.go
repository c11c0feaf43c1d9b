package lazyfs

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestWindow adds and gives up records in a small window, many laps, and opens it anew all the time: what was added and not given up is there, in its order, and nothing else.
func TestWindow(t *testing.T) {
	kerneltest.Leaks(t)
	path := filepath.Join(t.TempDir(), "w")
	w, err := newWindow(path, 64<<10)
	must(t, err)
	rnd := rand.New(rand.NewPCG(3, 3))
	var live []*keptWrite
	for i := range 3000 {
		b := make([]byte, rnd.IntN(1+rnd.IntN(20<<10)))
		for k := range b {
			b[k] = byte(rnd.Uint32())
		}
		for !w.room(len(b)) || len(live) > 0 && rnd.IntN(3) == 0 {
			n := 1 + rnd.IntN(len(live))
			last := live[n-1]
			must(t, w.release(last.end, last.seq+1))
			w.head, live = last.end, live[n:]
		}
		r := &keptWrite{number: uint64(i), node: rnd.Uint64(), handle: rnd.Uint64(), off: rnd.Uint64(), flags: rnd.Uint32(), uid: rnd.Uint32(), gid: rnd.Uint32(), b: b}
		must(t, w.add(r))
		live = append(live, r)
		if x := live[rnd.IntN(len(live))]; rnd.IntN(2) == 0 && !x.marked {
			must(t, w.mark(x))
			x.marked = true
		}
		if i%7 != 0 {
			continue
		}
		_ = w.f.Close()
		var list []*keptWrite
		w, list, err = openWindow(path)
		must(t, err)
		if len(list) != len(live) {
			t.Fatalf("step %d: %d records, want %d", i, len(list), len(live))
		}
		for k, x := range list {
			y := live[k]
			if !bytes.Equal(x.b, y.b) || x.seq != y.seq || x.end != y.end || x.at != y.at || x.marked != y.marked || x.number != y.number || x.node != y.node || x.handle != y.handle || x.off != y.off ||
				x.flags != y.flags || x.uid != y.uid || x.gid != y.gid {
				t.Fatalf("step %d: record %d is %+v, want %+v", i, k, x, y)
			}
		}
	}
	// The last record's contents are not what was written: it is not there. Nor is a window without a beginning.
	last := live[len(live)-1]
	if len(last.b) == 0 {
		last = &keptWrite{b: []byte("x")}
		must(t, w.add(last))
		live = append(live, last)
	}
	at := int64(windowStart + (last.end-1)/recordHead*recordHead%w.size)
	_, err = w.f.WriteAt(bytes.Repeat([]byte{^last.b[len(last.b)-1]}, recordHead), at)
	must(t, err)
	_ = w.f.Close()
	w, list, err := openWindow(path)
	must(t, err)
	if len(list) != len(live)-1 {
		t.Errorf("%d records, want %d", len(list), len(live)-1)
	}
	_ = w.f.Close()
	must(t, os.Truncate(path, 0))
	if _, _, err := openWindow(path); err == nil {
		t.Error("an empty window is opened")
	}
}
