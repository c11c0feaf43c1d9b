package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(2 * time.Minute)
	_ = a.SetDeadline(deadline)
	_ = b.SetDeadline(deadline)
	t.Cleanup(func() { a.Close(); b.Close() })
	return NewConn(a), NewConn(b)
}

func TestFrames(t *testing.T) {
	a, b := pair(t)
	big := bytes.Repeat([]byte{7}, MaxPayload-3)
	got := make(chan error, 1)
	go func() {
		for _, want := range [][]byte{nil, []byte("abc"), append([]byte("xyz"), big...)} {
			h, p, err := b.Recv()
			if err != nil {
				got <- err
				return
			}
			if h.Type != MsgPing || h.Flags != 9 || h.ID != 1<<40 || !bytes.Equal(p, want) {
				got <- errors.New("frame differs")
				return
			}
		}
		got <- nil
	}()
	for _, parts := range [][][]byte{nil, {[]byte("a"), nil, []byte("bc")}, {[]byte("xyz"), big}} {
		if err := a.Send(MsgPing, 9, 1<<40, parts...); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if err := a.Send(MsgPing, 0, 0, big, []byte("1234")); !errors.Is(err, ErrLong) {
		t.Fatalf("frame over the limit: %v", err)
	}
}

func TestGoldenHeader(t *testing.T) {
	var b [HeaderSize]byte
	Header{Length: 0x01020304, Type: 0x0506, Flags: 0x0708, ID: 0x1112131415161718}.Put(b[:])
	want := []byte{1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18}
	if !bytes.Equal(b[:], want) {
		t.Fatalf("header is % x", b)
	}
	if _, err := ParseHeader(b[:]); !errors.Is(err, ErrLong) {
		t.Fatalf("header of 16 MB payload: %v", err)
	}
}

func TestGoldenHello(t *testing.T) {
	h := Hello{Version: 1, Features: 2, Lane: LaneBulk}
	h.ID[0], h.ID[15], h.Token[0], h.Token[31] = 0xa1, 0xa2, 0xb1, 0xb2
	b := h.Marshal()
	want := append([]byte{0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 3, 0xa1}, make([]byte, 47)...)
	want[26], want[27], want[58] = 0xa2, 0xb1, 0xb2
	if !bytes.Equal(b, want) {
		t.Fatalf("hello is\n% x, want\n% x", b, want)
	}
	got, err := ParseHello(b)
	if err != nil || got != h {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestHello(t *testing.T) {
	id, other := NewID(), NewID()
	secret := Token{1}
	for _, c := range []struct {
		what         string
		dials, hears Hello
		want         string
	}{
		{"same", Hello{Lane: LaneBulk, ID: id, Token: secret}, Hello{Lane: LaneBulk, ID: id, Token: secret}, ""},
		{"lane", Hello{Lane: LaneUrgent, ID: id}, Hello{Lane: LaneBulk, ID: id}, "peer means"},
		{"ID", Hello{Lane: LaneBulk, ID: id}, Hello{Lane: LaneBulk, ID: other}, "peer means"},
		{"token", Hello{Lane: LaneBulk, ID: id, Token: Token{2}}, Hello{Lane: LaneBulk, ID: id, Token: secret}, "does not know the token"},
	} {
		t.Run(c.what, func(t *testing.T) {
			a, b := pair(t)
			heard := make(chan error, 1)
			go func() {
				_, err := AcceptHello(b, c.hears)
				heard <- err
			}()
			back, err := DialHello(a, c.dials)
			herr := <-heard
			if c.want == "" {
				if err != nil || herr != nil || back.Token != (Token{}) {
					t.Fatalf("%v, %v, %v", err, herr, back)
				}
				return
			}
			for _, e := range []error{err, herr} {
				if e == nil || !strings.Contains(e.Error(), c.want) {
					t.Fatalf("dialer: %v, acceptor: %v", err, herr)
				}
			}
		})
	}
}

// Bulk lanes have numbers of their own, and no other number is one.
func TestBulkLanes(t *testing.T) {
	seen := map[Lane]bool{}
	for n := range MaxBulk {
		l := BulkLane(n)
		if !l.Bulk() || !l.known() || seen[l] {
			t.Errorf("bulk lane %d is %v", n, l)
		}
		seen[l] = true
		var b bytes.Buffer
		if _, err := (Preamble{Lane: l, ID: NewID()}).WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		if p, err := ReadPreamble(&b); err != nil || p.Lane != l {
			t.Errorf("%v comes as %+v, %v", l, p, err)
		}
	}
	for v := range 256 {
		l := Lane(v)
		if l.Bulk() != seen[l] || l.known() != (seen[l] || l == LaneControl || l == LaneUrgent || l == LaneFiles) {
			t.Errorf("%v: bulk %v, known %v", l, l.Bulk(), l.known())
		}
	}
}

func TestPreamble(t *testing.T) {
	var b bytes.Buffer
	p := Preamble{Lane: LaneFiles, ID: NewID()}
	if n, err := p.WriteTo(&b); n != PreambleSize || err != nil {
		t.Fatal(n, err)
	}
	whole := bytes.Clone(b.Bytes())
	got, err := ReadPreamble(&b)
	if err != nil || got != p {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, v := range map[int]byte{0: 'X', 5: 9, 6: 77, 7: 2} {
		bad := bytes.Clone(whole)
		bad[i] = v
		if _, err := ReadPreamble(bytes.NewReader(bad)); err == nil {
			t.Errorf("byte %d = %d is accepted", i, v)
		}
	}
	p.Clear = true
	if got, err := parsePreamble(bytes.Clone(append(whole[:7:7], append([]byte{1}, whole[8:]...)...))); err != nil || got != p {
		t.Errorf("a clear lane's: %+v, %v", got, err)
	}
	control := bytes.Clone(whole)
	control[6], control[7] = byte(LaneControl), 1
	if _, err := ReadPreamble(bytes.NewReader(control)); err == nil {
		t.Error("a control lane without TLS is accepted")
	}
	if _, err := ReadPreamble(bytes.NewReader(whole[:31])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short preamble: %v", err)
	}
}

func TestError(t *testing.T) {
	err := ParseError(MarshalError(&os.PathError{Op: "open", Path: "/x", Err: syscall.ENOSPC}))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "/x") {
		t.Fatal(err)
	}
	if err := ParseError(nil); !errors.Is(err, ErrShort) {
		t.Fatal(err)
	}
}

func TestDecoderBounds(t *testing.T) {
	var e Encoder
	e.U32(1 << 30)
	if d := NewDecoder(e.B); d.Bytes(1<<20) != nil || !errors.Is(d.Err(), ErrLong) {
		t.Fatal("length over the limit", d.Err())
	}
	if d := NewDecoder(e.B); d.Count(1) != 0 || !errors.Is(d.Err(), ErrShort) {
		t.Fatal("count without items", d.Err())
	}
	d := NewDecoder([]byte{1, 2})
	if d.U32() != 0 || d.U8() != 0 || !errors.Is(d.End(), ErrShort) {
		t.Fatal("first violation does not stick", d.Err())
	}
	d = NewDecoder([]byte{1, 2})
	if d.U8() != 1 || !errors.Is(d.End(), ErrLong) {
		t.Fatal("bytes left are accepted")
	}
	if NewDecoder([]byte{2}).Bool() {
		t.Fatal("truth value 2")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Hello{Version: 1, Lane: LaneBulk}.Marshal())
	f.Add(MarshalError(syscall.EIO))
	f.Add(make([]byte, PreambleSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := ParseHello(b); err == nil && !bytes.Equal(h.Marshal(), b) {
			t.Fatal("hello does not come back")
		}
		if ParseError(b) == nil {
			t.Fatal("no error")
		}
		if len(b) >= PreambleSize {
			_, _ = parsePreamble(b)
		}
		_, _ = ParseHeader(b)
		c := NewConn(readOnly{bytes.NewReader(b)})
		for {
			if _, _, err := c.Recv(); err != nil {
				return
			}
		}
	})
}

// readOnly is a net.Conn of which only Read is used.
type readOnly struct{ *bytes.Reader }

func (readOnly) Write([]byte) (int, error)        { return 0, io.ErrClosedPipe }
func (readOnly) Close() error                     { return nil }
func (readOnly) LocalAddr() net.Addr              { return nil }
func (readOnly) RemoteAddr() net.Addr             { return nil }
func (readOnly) SetDeadline(time.Time) error      { return nil }
func (readOnly) SetReadDeadline(time.Time) error  { return nil }
func (readOnly) SetWriteDeadline(time.Time) error { return nil }

// TestProtocolDocument holds PROTOCOL.md's tables to the constants: each message of this package's files stands there with its number.
func TestProtocolDocument(t *testing.T) {
	doc, err := os.ReadFile("../PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	inDoc := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| (\\d+) \\| `(Msg\\w+)`").FindAllStringSubmatch(string(doc), -1) {
		inDoc[m[2]] = m[1]
	}
	seen := map[int]string{}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), "messages") {
			continue
		}
		src, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\t(Msg\w+)\s+(?:Type )?\s*= (\d+)`).FindAllStringSubmatch(string(src), -1) {
			n, _ := strconv.Atoi(m[2])
			if seen[n] != "" {
				t.Errorf("%s and %s are both %d", m[1], seen[n], n)
			}
			seen[n] = m[1]
			if inDoc[m[1]] != m[2] {
				t.Errorf("%s is %s, PROTOCOL.md says %q", m[1], m[2], inDoc[m[1]])
			}
			delete(inDoc, m[1])
		}
	}
	if len(seen) < 15 {
		t.Errorf("only %d messages found: the expression does not fit", len(seen))
	}
	for name := range inDoc {
		t.Errorf("PROTOCOL.md has %s, which is no message", name)
	}
}
