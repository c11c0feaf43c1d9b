package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// tcpPair is a connection over the loopback.
func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(2 * time.Minute)
	_ = a.SetDeadline(deadline)
	_ = b.SetDeadline(deadline)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// clearPair is a clear lane whose sides have shown that they know the token.
func clearPair(t *testing.T) (client, server *Conn) {
	t.Helper()
	a, b := tcpPair(t)
	p := Preamble{Lane: LaneBulk, Clear: true, ID: NewID()}
	said := make(chan error, 1)
	go func() { said <- AcceptClear(b, p, Token{7}) }()
	client, err := DialClear(a, p, Token{7})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-said; err != nil {
		t.Fatal(err)
	}
	return client, NewClear(b)
}

// Frames of all sizes come whole and in order over a clear lane, several senders at once, with the poller and without.
func TestClearFrames(t *testing.T) {
	for name, threads := range map[string]bool{"poller": false, "threads": true} {
		t.Run(name, func(t *testing.T) {
			client, server := clearPair(t)
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

// A frame of more parts than one system call takes.
func TestClearParts(t *testing.T) {
	client, server := clearPair(t)
	if err := client.WaitInThread(); err != nil {
		t.Fatal(err)
	}
	parts := make([][]byte, 2*maxParts+3)
	var want []byte
	for i := range parts {
		parts[i] = bytes.Repeat([]byte{byte(i)}, i%400)
		if i == 5 { // more than goes into one call
			parts[i] = bytes.Repeat([]byte{byte(i)}, 3*maxCall+7)
		}
		want = append(want, parts[i]...)
	}
	sent := make(chan error, 1)
	go func() { sent <- client.Send(1, 0, 1, parts...) }()
	if _, p, err := server.Recv(); err != nil || !bytes.Equal(p, want) {
		t.Fatalf("%d bytes of %d, or others: %v", len(p), len(want), err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// refused says something to an agent as a source would, and demands that nothing but a challenge comes back.
func refused(t *testing.T, p Preamble, token Token, say func(net.Conn)) {
	t.Helper()
	a, b := tcpPair(t)
	said := make(chan error, 1)
	go func() {
		err := AcceptClear(b, p, token)
		said <- err
		b.Close()
	}()
	say(a)
	if err := <-said; !errors.Is(err, ErrProof) {
		t.Fatalf("the agent says %v", err)
	}
	if n, err := io.Copy(io.Discard, a); n != 0 || err != nil {
		t.Fatalf("it tells %d bytes: %v", n, err)
	}
}

// TestClearProof: who does not know the token, or knows another's, gets no further, whatever it has seen of others.
func TestClearProof(t *testing.T) {
	p, token := Preamble{Lane: LaneBulk, Clear: true, ID: NewID()}, Token{1}
	for name, c := range map[string]struct {
		p     Preamble
		token Token
	}{
		"no token":      {p, Token{}},
		"another token": {p, Token{2}},
		"another lane":  {Preamble{Lane: LaneUrgent, Clear: true, ID: p.ID}, token},
		"another ID":    {Preamble{Lane: LaneBulk, Clear: true, ID: NewID()}, token},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, p, token, func(a net.Conn) {
				if _, err := DialClear(a, c.p, c.token); err == nil {
					t.Error("it is accepted")
				}
			})
		})
	}
	t.Run("replayed", func(t *testing.T) {
		a, b := tcpPair(t)
		var seen bytes.Buffer // all that a right source says
		spied := &spy{Conn: a, sent: &seen}
		said := make(chan error, 1)
		go func() { said <- AcceptClear(b, p, token) }()
		if _, err := DialClear(spied, p, token); err != nil {
			t.Fatal(err)
		}
		if err := <-said; err != nil {
			t.Fatal(err)
		}
		refused(t, p, token, func(a net.Conn) {
			var c challenge
			if _, err := io.ReadFull(a, c[:]); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Write(seen.Bytes()); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("sent back", func(t *testing.T) { // an agent that knows nothing
		a, b := tcpPair(t)
		go func() {
			var c challenge
			_, _ = b.Write(c[:])
			got := make([]byte, 64)
			_, _ = io.ReadFull(b, got)
			_, _ = b.Write(got[32:])
		}()
		if _, err := DialClear(a, p, token); !errors.Is(err, ErrProof) {
			t.Errorf("the source believes it: %v", err)
		}
	})
}

// spy keeps what is written.
type spy struct {
	net.Conn
	sent *bytes.Buffer
}

func (s *spy) Write(b []byte) (int, error) {
	s.sent.Write(b)
	return s.Conn.Write(b)
}

// Refused ends after its time, also of a peer that talks on, and when somebody closes the connection.
func TestRefused(t *testing.T) {
	a, b := tcpPair(t)
	ended := make(chan struct{})
	go func() {
		for {
			if _, err := a.Write(make([]byte, 1000)); err != nil {
				close(ended)
				return
			}
		}
	}()
	Refused(b, time.Millisecond)
	<-ended
	_, b = tcpPair(t)
	var wg sync.WaitGroup
	wg.Go(func() { Refused(b, time.Hour) })
	b.Close()
	wg.Wait()
}

func FuzzAcceptClear(f *testing.F) {
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, c := net.Pipe()
		go func() {
			_, _ = io.CopyN(io.Discard, a, challengeSize)
			_, _ = a.Write(b)
			a.Close()
		}()
		if AcceptClear(c, Preamble{Lane: LaneBulk, Clear: true}, Token{1}) == nil {
			t.Fatal("it is accepted")
		}
		c.Close()
	})
}
