package migrate

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lazymig/lazymig/ahead"
	"github.com/lazymig/lazymig/hot"
	"github.com/lazymig/lazymig/restore/memory"
	"github.com/lazymig/lazymig/wire"
)

// shared is a task that has mapped an object of three pages.
func shared(start, end, offset uint64) []memory.TaskMem {
	return []memory.TaskMem{
		{ID: 1, Shared: []memory.SharedRange{{Start: start, End: end, Object: 1 << 31, Offset: offset}}},
		{ID: 1 << 31, Regions: []memory.Region{{End: 0x3000}}},
	}
}

func TestMessageChecks(t *testing.T) {
	region := func(a, b uint64) []memory.TaskMem {
		return []memory.TaskMem{{ID: 1, Regions: []memory.Region{{Start: a, End: b}}}}
	}
	for _, c := range []struct {
		what string
		v    interface{ check() error }
		ok   bool
	}{
		{"prepare", &prepareMsg{PIDs: []int32{5}}, true},
		{"prepare without PIDs", &prepareMsg{}, false},
		{"prepare with PID 0", &prepareMsg{PIDs: []int32{5, 0}}, false},
		{"prepare with names", &prepareMsg{PIDs: []int32{5}, Datagrams: []string{"/dev/log", "\x00a\x00b"}}, true},
		{"prepare with a relative name", &prepareMsg{PIDs: []int32{5}, Datagrams: []string{"log"}}, false},
		{"prepare with a zero in a path", &prepareMsg{PIDs: []int32{5}, Datagrams: []string{"/dev/log\x00x"}}, false},
		{"prepare with too long a name", &prepareMsg{PIDs: []int32{5}, Datagrams: []string{"/" + strings.Repeat("x", 108)}}, false},
		{"prepare with too many names", &prepareMsg{PIDs: []int32{5}, Datagrams: slices.Repeat([]string{"/dev/log"}, maxDatagrams+1)}, false},
		{"restore", &restoreMsg{Tasks: region(0x1000, 0x3000)}, true},
		{"restore of nothing", &restoreMsg{}, false},
		{"huge pages", &restoreMsg{Tasks: []memory.TaskMem{{ID: 1, Huge: [][2]uint64{{1, 2}}}}}, true},
		{"no huge page", &restoreMsg{Tasks: []memory.TaskMem{{ID: 1, Huge: [][2]uint64{{1, 0}}}}}, false},
		{"huge pages of the kernel", &restoreMsg{Tasks: []memory.TaskMem{{ID: 1, Huge: [][2]uint64{{1 << 28, 1}}}}}, false},
		{"too many huge pages", &restoreMsg{Tasks: []memory.TaskMem{{ID: 1, Huge: make([][2]uint64, maxHuge+1)}}}, false},
		{"empty region", &restoreMsg{Tasks: region(0x1000, 0x1000)}, false},
		{"backward region", &restoreMsg{Tasks: region(0x2000, 0x1000)}, false},
		{"unaligned region", &restoreMsg{Tasks: region(0x1001, 0x3000)}, false},
		{"kernel addresses", &restoreMsg{Tasks: region(0x1000, 1<<48)}, false},
		{"shared memory", &restoreMsg{Tasks: shared(0x1000, 0x3000, 0x1000)}, true},
		{"behind the end of shared memory", &restoreMsg{Tasks: shared(0x1000, 0x3000, 0x2000)}, false},
		{"backward in shared memory", &restoreMsg{Tasks: shared(0x3000, 0x1000, 0)}, false},
		{"unaligned in shared memory", &restoreMsg{Tasks: shared(0x1000, 0x3000, 0x10)}, false},
		{"unknown shared memory", &restoreMsg{Tasks: shared(0x1000, 0x3000, 0)[:1]}, false},
		{"shared memory that does not begin at 0", &restoreMsg{Tasks: []memory.TaskMem{{ID: 1 << 31, Regions: []memory.Region{{Start: 0x1000, End: 0x3000}}}}}, false},
		{"overlap", &restoreMsg{Tasks: []memory.TaskMem{{Regions: []memory.Region{{Start: 0x1000, End: 0x3000}, {Start: 0x2000, End: 0x4000}}}}}, false},
	} {
		if err := c.v.check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	var m restoreMsg
	if err := decode([]byte(`{"tasks":[]}`), &m); err == nil {
		t.Error("decode does not check")
	}
}

// Images and early pages arrive as they were sent.
func TestImagesTransfer(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcdef"), 60_000)
	files := map[string][]byte{"core-1.img": []byte("core"), "pages-1.img": big, "empty.img": nil}
	for n, b := range files {
		if err := os.WriteFile(filepath.Join(src, n), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(src, "dump.log"), []byte("not sent"), 0o600); err != nil {
		t.Fatal(err)
	}
	early := []earlyPage{{Task: 3, Addr: 0x7000, Data: bytes.Repeat([]byte{9}, pageSize)}, {Task: 4, Addr: 0x9000, Data: make([]byte, pageSize)}}
	a, b := net.Pipe()
	deadline := time.Now().Add(2 * time.Minute)
	_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
	sent := make(chan error, 1)
	go func() {
		n, err := sendImages(wire.NewConn(a), src, encodeEarly(early))
		if err == nil && n != int64(len(big)+4+2*earlyRecord) {
			err = errors.New("wrong count of bytes")
		}
		a.Close()
		sent <- err
	}()
	sink := newImageSink(dst)
	c := wire.NewConn(b)
	for {
		h, p, err := c.Recv()
		if err != nil {
			break
		}
		if h.Type != wire.MsgImages {
			t.Fatalf("message %d", h.Type)
		}
		if err := sink.piece(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	ents, _ := os.ReadDir(dst)
	if len(ents) != len(files) {
		t.Errorf("%d files arrived", len(ents))
	}
	for n, want := range files {
		if got, err := os.ReadFile(filepath.Join(dst, n)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", n, len(got), err)
		}
	}
	got, err := decodeEarly(sink.early)
	if err != nil || len(got) != 2 || got[0].Task != 3 || got[1].Addr != 0x9000 || !bytes.Equal(got[0].Data, early[0].Data) {
		t.Errorf("early pages: %v", err)
	}
}

func piece(name string, off uint64, data string) []byte {
	var e wire.Encoder
	e.String(name)
	e.U64(off)
	e.B = append(e.B, data...)
	return e.B
}

func TestHostileImages(t *testing.T) {
	dir := t.TempDir()
	s := newImageSink(filepath.Join(dir, "images"))
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"", ".", "..", "../x.img", "a/b.img", "/etc/x.img", ".hidden.img", "x", "x.img\x00", strings.Repeat("a", 200) + ".img"} {
		if err := s.piece(piece(n, 0, "x")); err == nil {
			t.Errorf("name %q is accepted", n)
		}
	}
	if err := s.piece(piece("a.img", 5, "x")); err == nil {
		t.Error("a hole is accepted")
	}
	if err := errors.Join(s.piece(piece("a.img", 0, "xy")), s.piece(piece("a.img", 2, "z"))); err != nil {
		t.Error(err)
	}
	if err := s.piece(piece("a.img", 1, "x")); err == nil {
		t.Error("a piece that overlaps is accepted")
	}
	s.total = maxImageBytes
	if err := s.piece(piece("b.img", 0, "x")); err == nil {
		t.Error("more bytes than allowed are accepted")
	}
	if ents, _ := os.ReadDir(dir); len(ents) != 1 {
		t.Errorf("something was written outside: %v", ents)
	}
	if _, err := decodeEarly(make([]byte, earlyRecord+1)); err == nil {
		t.Error("half a page is accepted")
	}
	bad := encodeEarly([]earlyPage{{Addr: 0x1001, Data: make([]byte, pageSize)}})
	if _, err := decodeEarly(bad); err == nil {
		t.Error("an address inside a page is accepted")
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(encode(prepareMsg{PIDs: []int32{1}}))
	f.Add(encode(restoreMsg{Tasks: []memory.TaskMem{{ID: 1, Regions: []memory.Region{{Start: 4096, End: 8192}}}}}))
	f.Add(piece("core-1.img", 0, "abc"))
	f.Add(aheadMessage(ahead.Batch{ID: 1, Runs: []ahead.Run{{Addr: 4096, Pages: 1}}, Data: make([]byte, pageSize)}))
	f.Add(goodMessages(&goodPages{task: 1, mask: 3, rep: 2})[0])
	f.Add(encodeHot([]hot.Span{{Task: 1, Addr: wordBytes, Words: 2, Mask: 3}}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range []any{&prepareMsg{}, &restoreMsg{}, &progressMsg{}, &dialMsg{}, &stateMsg{}, &resumedMsg{}} {
			if decode(b, v) == nil && !json.Valid(b) {
				t.Fatal("decoded what is no JSON")
			}
		}
		s := newImageSink(dir)
		_ = s.piece(b)
		for n := range s.files {
			if filepath.Base(n) != n {
				t.Fatalf("name %q", n)
			}
			_ = os.Remove(filepath.Join(dir, n)) // not there if it was early pages
		}
		k := newAheadSink(1 << 20)
		for _, flags := range []uint16{0, wire.FlagS2, wire.FlagZstd, wire.FlagS2 | wire.FlagZstd} {
			_ = k.pages(flags, b)
		}
		_ = k.mark(b)
		if l, err := takeHot(nil, b); err == nil && len(l)*goodRecord != len(b)-4 {
			t.Fatalf("%d entries of %d bytes", len(l), len(b))
		}
		if k.f != nil {
			if fi, err := k.f.Stat(); err != nil || fi.Size() > 1<<20 {
				t.Fatalf("%d bytes are kept, %v", fi.Size(), err)
			}
		}
		k.close()
		_, _ = decodeEarly(b)
		_, _ = parseEntry(b)
	})
}
