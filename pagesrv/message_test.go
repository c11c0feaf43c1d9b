package pagesrv

import (
	"bytes"
	"encoding/hex"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestGolden holds the bytes on the wire.
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name, want string
		got        []byte
	}{
		{"pages", "0000002a" + "00007f1234567000" + "00000040", Request{42, 0x7f1234567000, 64}.appendTo(nil)},
		{
			"pages, scattered", "0000002a" + "00007f1234567000" + "00000040" + "0000000000009000" + "00000001" + "0000000000001000" + "000000bf",
			appendParts(nil, []Request{{42, 0x7f1234567000, 64}, {42, 0x9000, 1}, {42, 0x1000, 191}}),
		},
		{
			"paged", "00000003" + "01" + "0000" + "00000002" + "02" + "0000" + "00000001" + "05" + "000e" + "0000003d",
			appendRuns(nil, []Run{{KindData, 0, 2}, {KindZero, 0, 1}, {KindError, unix.EFAULT, 61}}),
		},
		{"layout", "0000002a" + "0000000000001000" + "0000000000009000", LayoutRequest{42, 0x1000, 0x9000}.encode()},
		{
			"laid", "0000000000009000" + "00000001" + "0000000000002000" + "0000000000003000",
			Layout{0x9000, []Range{{0x2000, 0x3000}}}.encode(),
		},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if k := []Kind{KindData, KindZero, KindGuard, KindPoison, KindError}; !slices.Equal(k, []Kind{1, 2, 3, 4, 5}) {
		t.Error(k)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(Request{42, 0x7f1234567000, 64}.appendTo(nil))
	f.Add(appendParts(nil, []Request{{42, 0x7f1234567000, 64}, {42, 0x9000, 1}, {42, 0x1000, 191}}))
	f.Add(appendParts(nil, slices.Repeat([]Request{{42, 0x1000, 4}}, MaxParts)))
	f.Add(appendParts(nil, slices.Repeat([]Request{{42, 0x1000, 1 << 30}}, MaxParts+1)))
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, requestSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, err := parseParts(b, nil)
		if err != nil {
			return
		}
		if !bytes.Equal(appendParts(nil, parts), b) {
			t.Errorf("%+v is not what was decoded", parts)
		}
		n, err := checkParts(parts)
		if err != nil {
			return
		}
		for _, r := range parts {
			if n -= r.Pages; r.Task != parts[0].Task || r.Addr+uint64(r.Pages)*PageSize <= r.Addr || r.Pages < 1 || r.Pages > MaxPages {
				t.Errorf("%+v passed the check", r)
			}
		}
		if n != 0 || len(parts) > MaxParts {
			t.Errorf("%d ranges passed the check", len(parts))
		}
	})
}

func FuzzParseRuns(f *testing.F) {
	f.Add(appendRuns(nil, []Run{{KindData, 0, 2}, {KindZero, 0, 1}, {KindError, unix.EFAULT, 61}})[4:], uint32(64))
	f.Add([]byte{1, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0, 0, 0, 65}, uint32(64))
	f.Fuzz(func(t *testing.T, b []byte, pages uint32) {
		pages = pages%MaxPages + 1
		runs, data, err := parseRuns(b, pages, nil)
		if err != nil {
			return
		}
		var sum, bytesOf uint32
		for _, r := range runs {
			if sum += r.Pages; r.Kind == KindData {
				bytesOf += r.Pages * PageSize
			}
		}
		if sum != pages || int(bytesOf) != data || data > int(pages)*PageSize {
			t.Errorf("%d pages are covered by %v with %d bytes", pages, runs, data)
		}
		if !bytes.Equal(appendRuns(nil, runs)[4:], b) {
			t.Errorf("%v is not what was decoded", runs)
		}
	})
}

func FuzzParseLayout(f *testing.F) {
	f.Add(Layout{0x9000, []Range{{0x2000, 0x3000}, {0x4000, 0x9000}}}.encode())
	f.Add(Layout{0x2000, []Range{{0x2000, 0x3000}}}.encode())
	f.Add(LayoutRequest{42, 0x1000, 0x9000}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseLayoutRequest(b); err == nil && !bytes.Equal(r.encode(), b) {
			t.Errorf("%+v is not what was decoded", r)
		}
		req := LayoutRequest{1, 0x1000, 0x10000}
		l, err := parseLayout(b, req)
		if err != nil {
			return
		}
		at := req.Start
		for _, r := range l.Fetch {
			if r.Start < at || r.End <= r.Start || r.End > l.End {
				t.Errorf("%+v", l)
			}
			at = r.End
		}
		if l.End > req.End || !bytes.Equal(l.encode(), b) {
			t.Errorf("%+v is not what was decoded", l)
		}
	})
}
