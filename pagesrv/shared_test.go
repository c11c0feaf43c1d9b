package pagesrv

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestSharedObject: what the object has pages for is data, or zero if they hold nothing else; holes and what lies behind its end are zero.
func TestSharedObject(t *testing.T) {
	kerneltest.Leaks(t)
	const id, pages = 1 << 31, 64
	fd, err := unix.MemfdCreate("object", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "object")
	if err := f.Truncate(pages * PageSize); err != nil {
		t.Fatal(err)
	}
	want := map[int][]byte{} // by page
	for i := range pages {
		if i%16 < 5 {
			want[i] = pattern(uint64(i) * PageSize)
			if i == 3 {
				want[i] = make([]byte, PageSize)
			}
			if _, err := f.WriteAt(want[i], int64(i)*PageSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, err := NewServer(ServerOptions{Objects: []Object{{ID: id, File: f}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := newClient(t)
	attach(t, s, c, wire.LaneUrgent)
	attach(t, s, c, wire.LaneBulk)
	for _, lane := range []wire.Lane{wire.LaneUrgent, wire.LaneBulk} {
		g, err := fetch(t, c, lane, Request{Task: id, Pages: pages + 3})
		if err != nil {
			t.Fatal(err)
		}
		for i := range pages + 3 {
			kind := KindZero
			if want[i] != nil && i != 3 {
				kind = KindData
			}
			if g.kinds[i] != kind || kind == KindData && !bytes.Equal(g.pages[i], want[i]) {
				t.Errorf("page %d is %v", i, g.kinds[i])
			}
		}
	}
	l, err := layoutOf(t, c, LayoutRequest{Task: id, End: pages * PageSize})
	if err != nil {
		t.Fatal(err)
	}
	var all []Range
	for i := range uint64(pages / 16) {
		all = append(all, Range{i * 16 * PageSize, (i*16 + 5) * PageSize})
	}
	if !slices.Equal(l, all) {
		t.Errorf("layout %v, not %v", l, all)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks != pages/16*5*PageSize/512 {
		t.Errorf("reading has made pages: %d blocks, %v", st.Blocks, err)
	}
	if _, err := fetch(t, c, wire.LaneBulk, Request{Task: id + 1, Pages: 1}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("an object that is not served: %v", err)
	}
	s.DropObjects()
	if _, err := fetch(t, c, wire.LaneBulk, Request{Task: id, Pages: 1}); err == nil {
		t.Error("an object that was let go of is served")
	}
}
