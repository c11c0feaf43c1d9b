package preflight

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestABISizes holds the structs against include/uapi.
func TestABISizes(t *testing.T) {
	for name, c := range map[string][2]uintptr{
		"unix_diag_req": {unsafe.Sizeof(unixDiagReq{}), 24},
		"unix_diag_msg": {unsafe.Sizeof(unixDiagMsg{}), 16},
		"uffdio_api":    {unsafe.Sizeof(uffdioAPI{}), 24},
	} {
		if c[0] != c[1] {
			t.Errorf("%s has %d bytes, want %d", name, c[0], c[1])
		}
	}
}

func TestParseStat(t *testing.T) {
	tail := " S 7 8 9 34816 8 4194304 1 2 3 4 5 6 7 8 20 0 1 0 777 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 17 1 0 6 0 0 0 0 0 0 0 0 0 0 0\n"
	s, err := parseStat([]byte("42 (a) b (c) x)" + tail))
	if err != nil || s.comm != "a) b (c) x" || s.state != 'S' || s.ppid != 7 || s.pgrp != 8 || s.sid != 9 || s.tty != 34816 || s.start != 777 || s.policy != 6 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "42 (x", "42 (x) S 1", ")("} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

func TestParseVMAs(t *testing.T) {
	text := `00400000-00401000 rw-s 00001000 fd:02 123                       /a file (deleted)
Rss:                   8 kB
Swap:                  4 kB
VmFlags: rd wr sh mw sl
7f0000000000-7f0000001000 r-xp 00000000 00:00 0
VmFlags: rd ex
`
	v, err := parseVMAs(strings.NewReader(text))
	if err != nil || len(v) != 2 {
		t.Fatal(v, err)
	}
	a := v[0]
	if a.start != 0x400000 || a.end != 0x401000 || !a.shared() || !a.writable() || a.path != "/a file (deleted)" || a.key != (inodeKey{unix.Mkdev(0xfd, 2), 123}) ||
		!a.has("sl") || a.has("s") || a.present != 12<<10 {
		t.Errorf("%+v", a)
	}
	if v[1].path != "" || v[1].shared() || v[1].mayWrite() {
		t.Errorf("%+v", v[1])
	}
	// What the kernel says of this process.
	own, err := readVMAs("/proc/self/smaps")
	if err != nil || !slices.ContainsFunc(own, func(v vma) bool { return v.path == "[vdso]" && v.has("ex") }) {
		t.Errorf("own mappings: %v", err)
	}
}

func TestParseAddr(t *testing.T) {
	for s, want := range map[string]string{
		"0100007F:1F90": "127.0.0.1:8080", "00000000:0016": "0.0.0.0:22",
		"00000000000000000000000001000000:0050": "[::1]:80", "B80D0120000000000000000001000000:0001": "[2001:db8::1]:1",
	} {
		if got := parseAddr(s); got.String() != want {
			t.Errorf("%s is %v, want %s", s, got, want)
		}
	}
	for _, bad := range []string{"", "01:02", "xx:1", "0100007F", "0100007F:fffff"} {
		if parseAddr(bad).IsValid() {
			t.Errorf("%q was parsed", bad)
		}
	}
}

func TestCPULists(t *testing.T) {
	mask, err := parseCPUList("0-1,64")
	if err != nil || !slices.Equal(mask, []uint64{3, 1}) {
		t.Errorf("%v, %v", mask, err)
	}
	for _, bad := range []string{"", "a", "3-1", "0-99999", "-1"} {
		if _, err := parseCPUList(bad); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
	if !covers([]uint64{7, 1}, []uint64{3, 1}) || covers([]uint64{3}, []uint64{3, 1}) || covers([]uint64{1}, []uint64{3}) {
		t.Error("covers is wrong")
	}
}

func TestKernelAtLeast(t *testing.T) {
	for r, want := range map[string]bool{"6.9.0": true, "6.10-rc1": true, "7.0": true, "6.9-custom": true, "6.8.99": false, "5.19": false, "x": false, "": false} {
		if kernelAtLeast(r, 6, 9) != want {
			t.Errorf("%s at least 6.9: %v", r, !want)
		}
	}
}

func TestUnitOf(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/redis.service\n":                                          "redis.service",
		"0::/system.slice/redis.service/worker\n":                                   "redis.service",
		"0::/user.slice/user-0.slice/user@0.service/app.slice\n":                    "",
		"0::/user.slice/user-1.slice/user@1.service/app.slice/x.service\n":          "x.service",
		"1:name=systemd:/system.slice/a.service\n0::/\n":                            "a.service",
		"5:cpu:/system.slice/no.service\n0::/user.slice/user-0.slice/session.scope": "",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/cgroup", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := unitOf(dir); got != want {
			t.Errorf("%q is in %q, want %q", text, got, want)
		}
	}
}

// TestDevOfTTY: stat's encoding of /dev/pts/300.
func TestDevOfTTY(t *testing.T) {
	if n, ok := ptsIndex(devOfTTY(136<<8 | 300&0xff | 300>>8<<20)); !ok || n != 300 {
		t.Errorf("pts %d %v", n, ok)
	}
	if _, ok := ptsIndex(devOfTTY(4<<8 | 1)); ok {
		t.Error("tty1 is a pts")
	}
}

func TestLevels(t *testing.T) {
	for l := OK; l <= Refuse; l++ {
		b, err := json.Marshal(Finding{Level: l})
		var back Finding
		if err != nil || json.Unmarshal(b, &back) != nil || back.Level != l || !bytes.Contains(b, []byte(`"`+l.String()+`"`)) {
			t.Errorf("%v became %s and %v", l, b, back.Level)
		}
	}
	if json.Unmarshal([]byte(`{"level":"maybe"}`), &Finding{}) == nil {
		t.Error("an unknown level was read")
	}
}

// FuzzParse feeds every parser: none may panic or read beyond its input.
func FuzzParse(f *testing.F) {
	for _, path := range []string{"stat", "smaps", "cgroup", "status", "net/tcp"} {
		b, err := os.ReadFile("/proc/self/" + path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:min(len(b), 4096)])
	}
	msg := make([]byte, 48)
	binary.NativeEndian.PutUint32(msg, 48)
	binary.NativeEndian.PutUint16(msg[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(msg[32:], 8)
	binary.NativeEndian.PutUint16(msg[34:], unixDiagPeer)
	f.Add(msg)
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = parseStat(b)
		_, _ = parseVMAs(bytes.NewReader(b))
		_, _ = parseUnixDiag(b, map[uint64]unixSock{})
		_ = parseAddr(string(b))
		_, _ = parseCPUList(string(b))
		in := &inspector{socks: map[uint64]*sock{0: {}}}
		in.readTable("tcp", string(b))
		_ = keyed(b)
	})
}
