package remotefs

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// FuzzServer feeds one operation with any payload to a server that may change its directory: it must answer or end
// the connection, and touch nothing outside.
func FuzzServer(f *testing.F) {
	outer := f.TempDir()
	dir := filepath.Join(outer, "root")
	must(f, os.Mkdir(dir, 0o755))
	must(f, os.WriteFile(filepath.Join(outer, "secret"), []byte("secret"), 0o644))
	must(f, os.WriteFile(filepath.Join(dir, "f"), []byte("data"), 0o644))
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(f, err)
	s, err := NewServer(ServerOptions{Root: d})
	must(f, err)
	must(f, d.Close())
	s.Grant()
	s.Frozen(nil)
	f.Cleanup(func() { must(f, s.Close()) })
	for typ := range ops {
		e := acked(1, wire.FileCaller{UID: 1, GID: 1})
		e.String("f")
		f.Add(uint16(typ), e.B)
		e = acked(1, wire.FileCaller{})
		e.String("../secret")
		e.U64(1)
		e.String("..")
		e.U32(0)
		f.Add(uint16(typ), e.B)
		f.Add(uint16(typ), []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0})
		f.Add(uint16(typ), []byte{0, 1, 0, 0, 0, 0, 0, 0, 0, 7})
		f.Add(uint16(typ), []byte{0xff, 0xff, 1})
	}
	f.Fuzz(func(t *testing.T, typ uint16, p []byte) {
		if len(p) > wire.MaxPayload {
			return
		}
		a, b := net.Pipe()
		done := make(chan struct{})
		go func() { // read what comes
			defer close(done)
			for c := wire.NewConn(b); ; {
				if _, _, err := c.Recv(); err != nil {
					return
				}
			}
		}()
		l := &serverLink{c: wire.NewConn(a), gone: make(chan struct{})}
		s.sess.cur, s.sess.kept = l, map[uint64]*keptAnswer{7: {done: make(chan struct{})}}
		if j, err := s.take(l, wire.Header{Type: wire.Type(typ), ID: 1, Length: uint32(len(p))}, p); err == nil {
			_ = s.handle(j)
		}
		_ = a.Close()
		<-done
		if got, err := os.ReadFile(filepath.Join(outer, "secret")); err != nil || string(got) != "secret" {
			t.Fatalf("outside: %q, %v", got, err)
		}
	})
}

// FuzzDirent reads any bytes as directory records.
func FuzzDirent(f *testing.F) {
	f.Add([]byte("01234567abcdefgh\x18\x00\x04name\x00"))
	f.Add([]byte("01234567abcdefgh\xff\xff\x04name\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			_, n, err := parseDirent(b)
			if err != nil {
				return
			}
			if n <= 0 || n > len(b) {
				t.Fatalf("record of %d bytes in %d", n, len(b))
			}
			b = b[n:]
		}
	})
}

// FuzzReplies decodes any bytes as the compound fields.
func FuzzReplies(f *testing.F) {
	var e wire.Encoder
	(&wire.FileDirent{Name: "n", Entry: wire.FileEntry{Node: 3}}).Put(&e)
	f.Add(e.B)
	f.Fuzz(func(t *testing.T, b []byte) {
		var x wire.FileDirent
		d := wire.NewDecoder(b)
		x.Get(d)
		if d.End() == nil {
			var again wire.Encoder
			x.Put(&again)
			var y wire.FileDirent
			d := wire.NewDecoder(again.B)
			y.Get(d)
			if d.End() != nil || x != y && x.Entry.Node != 0 {
				t.Fatalf("%+v became %+v", x, y)
			}
		}
		var s wire.FileSetAttr
		s.Get(wire.NewDecoder(b))
		var st wire.FileStatfs
		st.Get(wire.NewDecoder(b))
	})
}
