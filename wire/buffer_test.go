package wire

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

// counted counts the writes that reach the socket.
type counted struct {
	net.Conn
	mu     sync.Mutex
	writes int
}

func (c *counted) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.writes++
	c.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *counted) took() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.writes
	c.writes = 0
	return n
}

// tlsPair is a connection over TCP and TLS with buffers on both sides.
func tlsPair(t *testing.T) (client, server *Conn, below *counted) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	below = &counted{Conn: a}
	tc := tls.Client(Buffer(below), &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
	ts := tls.Server(Buffer(b), &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, SessionTicketsDisabled: true})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := ts.Handshake(); err != nil {
			t.Error(err)
		}
	})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	client, server = NewConn(tc), NewConn(ts)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server, below
}

// Frames of all sizes come whole and in order, also when several send at once, and a large one takes few system calls.
func TestBuffer(t *testing.T) {
	client, server, below := tlsPair(t)
	below.took()
	big := manyFrames(t, client, server)
	below.took()
	if err := client.Send(1, 0, 1, big); err != nil { // the answer shows that all of it has been flushed
		t.Fatal(err)
	}
	if _, _, err := server.Recv(); err != nil {
		t.Fatal(err)
	}
	if n := below.took(); n > 3 {
		t.Errorf("%d bytes took %d writes", len(big), n)
	}
	if err := server.Send(2, 0, 7, []byte("back")); err != nil {
		t.Fatal(err)
	}
	if h, p, err := client.Recv(); err != nil || h.ID != 7 || string(p) != "back" {
		t.Fatalf("%+v %q %v", h, p, err)
	}
}

// manyFrames sends frames of all sizes from several goroutines and looks at each that comes. It returns the largest.
func manyFrames(t *testing.T, client, server *Conn) []byte {
	t.Helper()
	big := make([]byte, 256<<10)
	_, _ = rand.Read(big) // it never fails
	const senders, frames = 4, 60
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range frames {
				n := []int{0, 1, 100, 16 << 10, 40 << 10, len(big)}[i%6]
				if err := client.Send(1, 0, uint64(s)<<32|uint64(i), big[:n/2], big[n/2:n]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	next := [senders]uint64{}
	for range senders * frames {
		h, p, err := server.Recv()
		if err != nil {
			t.Fatal(err)
		}
		s, i := h.ID>>32, h.ID&0xffffffff
		if i != next[s] || !bytes.Equal(p, big[:len(p)]) || len(p) != []int{0, 1, 100, 16 << 10, 40 << 10, len(big)}[i%6] {
			t.Fatalf("frame %d of sender %d, %d bytes, is not what was sent", i, s, len(p))
		}
		next[s]++
	}
	wg.Wait()
	return big
}

// inThread runs a test on both kinds of connections that can wait in threads.
func inThread(t *testing.T, test func(t *testing.T, client, server *Conn)) {
	t.Run("TLS", func(t *testing.T) {
		client, server, _ := tlsPair(t)
		test(t, client, server)
	})
	t.Run("clear", func(t *testing.T) {
		client, server := clearPair(t)
		test(t, client, server)
	})
}

// A peer's end is seen behind what it sent last.
func TestBufferEnd(t *testing.T) {
	client, server, _ := tlsPair(t)
	if err := client.Send(3, 0, 1, []byte("last")); err != nil {
		t.Fatal(err)
	}
	client.Close()
	if _, p, err := server.Recv(); err != nil || string(p) != "last" {
		t.Fatalf("%q %v", p, err)
	}
	if _, _, err := server.Recv(); err == nil {
		t.Fatal("a frame after the end")
	}
}

// A reader that waits in its thread gets what comes, and Close wakes it.
func TestWaitInThread(t *testing.T) { inThread(t, waitInThread) }

func waitInThread(t *testing.T, client, server *Conn) {
	if err := server.WaitInThread(); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		if h, _, err := server.Recv(); err != nil || h.ID != 5 {
			got <- err
			return
		}
		got <- nil
		_, _, err := server.Recv()
		got <- err
	}()
	if err := client.Send(1, 0, 5, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	server.Close()
	select {
	case err := <-got:
		if err == nil {
			t.Error("a frame after Close")
		}
	case <-time.After(time.Minute):
		t.Fatal("Close does not wake the reader")
	}
}

// A writer that waits in its thread is woken by Close too.
func TestWriteInThread(t *testing.T) { inThread(t, writeInThread) }

func writeInThread(t *testing.T, client, server *Conn) {
	if err := server.WaitInThread(); err != nil {
		t.Fatal(err)
	}
	first, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		big := make([]byte, 1<<20)
		for i := uint64(0); ; i++ {
			if err := server.Send(1, 0, i, big); err != nil {
				ended <- err
				return
			}
			if i == 0 {
				close(first)
			}
		}
	}()
	if h, p, err := client.Recv(); err != nil || h.ID != 0 || len(p) != 1<<20 {
		t.Fatalf("%+v, %d bytes: %v", h, len(p), err)
	}
	<-first
	server.Close() // nobody reads: sooner or later the writer waits
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("Close does not wake the writer")
	}
}
