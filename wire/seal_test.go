package wire

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
)

// sealedPair is a lane over TCP and TLS whose hellos are said.
func sealedPair(t *testing.T) (client, server *Conn) {
	t.Helper()
	client, server, _ = tlsPair(t)
	hellos(t, client, server, LaneBulk)
	if client.sealed == nil || server.sealed == nil {
		t.Fatal("the lane is not sealed")
	}
	return client, server
}

func hellos(t *testing.T, client, server *Conn, l Lane) {
	t.Helper()
	said := make(chan error, 1)
	go func() {
		_, err := DialHello(client, Hello{Lane: l})
		said <- err
	}()
	_, err := AcceptHello(server, Hello{Lane: l})
	if err := errors.Join(err, <-said); err != nil {
		t.Fatal(err)
	}
}

// Frames of all sizes come whole and in order over a sealed lane, and the wire shows none of them.
func TestSealedFrames(t *testing.T) {
	for name, threads := range map[string]bool{"poller": false, "threads": true} {
		t.Run(name, func(t *testing.T) {
			client, server := sealedPair(t)
			if threads {
				if err := errors.Join(client.WaitInThread(), server.WaitInThread()); err != nil {
					t.Fatal(err)
				}
			}
			manyFrames(t, client, server)
			if err := server.Send(2, 0, 7, []byte("back")); err != nil {
				t.Fatal(err)
			}
			if h, p, err := client.Recv(); err != nil || h.ID != 7 || string(p) != "back" {
				t.Fatalf("%+v %q %v", h, p, err)
			}
		})
	}
}

// What is said at once behind a hello is not lost in TLS's buffers: the server of many connections speaks first.
func TestSealedAtOnce(t *testing.T) {
	for range 20 {
		client, server, _ := tlsPair(t)
		said := make(chan error, 1)
		go func() {
			_, err := AcceptHello(server, Hello{Lane: LaneUrgent})
			for i := uint64(0); i < 3 && err == nil; i++ {
				err = server.Send(1, 0, i, bytes.Repeat([]byte{9}, 100<<10))
			}
			said <- err
		}()
		if _, err := DialHello(client, Hello{Lane: LaneUrgent}); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(3) {
			if h, p, err := client.Recv(); err != nil || h.ID != i || len(p) != 100<<10 {
				t.Fatalf("%+v, %d bytes, %v", h, len(p), err)
			}
		}
		if err := <-said; err != nil {
			t.Fatal(err)
		}
	}
}

// A control lane, and a peer that does not know seals, stay with TLS.
func TestNotSealed(t *testing.T) {
	client, server, _ := tlsPair(t)
	hellos(t, client, server, LaneControl)
	if client.sealed != nil || server.sealed != nil {
		t.Error("a control lane is sealed")
	}
	client, server, _ = tlsPair(t)
	said := make(chan error, 1)
	go func() {
		_, err := DialHello(client, Hello{Lane: LaneBulk})
		said <- err
	}()
	if _, _, err := server.Recv(); err != nil { // as a release before this one answers
		t.Fatal(err)
	}
	if err := server.Send(MsgHello, 0, 0, Hello{Version: Version, Lane: LaneBulk}.Marshal()); err != nil {
		t.Fatal(err)
	}
	if err := <-said; err != nil || client.sealed != nil {
		t.Fatalf("sealed %v, %v", client.sealed != nil, err)
	}
	if _, ok := client.Net().(*tls.Conn); !ok {
		t.Error("the lane has no TLS")
	}
}

// records are what a sealed lane writes for two frames, one of several records, and a reader of it.
func records(t testing.TB, material []byte) (all [][]byte, plain []byte, read func([]byte) ([]byte, error)) {
	t.Helper()
	write, err := newDirection(material)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	s := &sealed{below: &below{Conn: sink{b: &b}}, write: write, out: make([]byte, 0, sealOut)}
	data := make([]byte, 150<<10)
	for i := range data {
		data[i] = byte(i*i>>7 ^ i)
	}
	for i := range uint64(2) {
		if err := s.send(Header{Length: uint32(len(data)), Type: 7, ID: i}, [][]byte{data[:10], data[10:]}); err != nil {
			t.Fatal(err)
		}
		var h [HeaderSize]byte
		Header{Length: uint32(len(data)), Type: 7, ID: i}.Put(h[:])
		plain = append(append(plain, h[:]...), data...)
	}
	for w := b.Bytes(); len(w) > 0; {
		n := sealHead + int(w[0])<<24 + int(w[1])<<16 + int(w[2])<<8 + int(w[3])
		all, w = append(all, bytes.Clone(w[:n])), w[n:]
	}
	return all, plain, func(w []byte) ([]byte, error) {
		d, err := newDirection(material)
		if err != nil {
			t.Fatal(err)
		}
		return io.ReadAll(&sealed{below: &below{Conn: readOnly{bytes.NewReader(w)}}, read: d, room: make([]byte, sealRoom)})
	}
}

// sink is a connection that keeps what is written.
type sink struct {
	net.Conn
	b *bytes.Buffer
}

func (s sink) Write(b []byte) (int, error) { return s.b.Write(b) }

// TestSealBroken: a record that was changed, left out, repeated, moved or cut is noticed, and nothing behind it is believed.
func TestSealBroken(t *testing.T) {
	material := make([]byte, sealKey+sealNonce)
	_, _ = rand.Read(material) // it never fails
	all, plain, read := records(t, material)
	join := func(r ...[]byte) []byte { return bytes.Join(r, nil) }
	if got, err := read(join(all...)); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%d bytes of %d, or others: %v", len(got), len(plain), err)
	}
	for r := range all {
		for _, at := range []int{0, 3, sealHead, len(all[r]) - 1} { // length, contents, tag
			b := slices.Clone(all)
			b[r] = bytes.Clone(b[r])
			b[r][at] ^= 1
			broken(t, read, plain, join(b...))
		}
		if r < len(all)-1 {
			broken(t, read, plain, join(slices.Delete(slices.Clone(all), r, r+1)...)) // left out
			b := slices.Clone(all)
			b[r], b[r+1] = b[r+1], b[r]
			broken(t, read, plain, join(b...)) // moved
		}
		broken(t, read, plain, join(slices.Insert(slices.Clone(all), r, all[r])...)) // repeated
	}
	whole := join(all...)
	broken(t, read, plain, whole[:len(whole)-1]) // cut
	material[0] ^= 1
	_, _, other := records(t, material)
	broken(t, other, plain, whole) // another session's
}

// broken demands an error, and that what was read before it is what was sent.
func broken(t *testing.T, read func([]byte) ([]byte, error), plain, w []byte) {
	t.Helper()
	got, err := read(w)
	if err == nil || !bytes.HasPrefix(plain, got) {
		t.Errorf("%d bytes are read, error %v", len(got), err)
	}
}

func FuzzSealed(f *testing.F) {
	material := make([]byte, sealKey+sealNonce)
	all, plain, read := records(f, material)
	f.Add(all[0])
	f.Add(bytes.Join(all, nil))
	f.Add([]byte{0, 1, 0, 17})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := read(b) // nobody but who has the keys makes a record that is read
		if len(got) > 0 && !bytes.HasPrefix(b, all[0]) || len(b) > 0 && err == nil && len(got) == 0 {
			t.Fatalf("%d bytes, %v of %d", len(got), err, len(plain))
		}
	})
}
