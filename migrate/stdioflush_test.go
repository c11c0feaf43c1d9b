package migrate

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestFlushStdio: the end of a tree is told only when the source has passed on what it wrote, though the connection is away and comes back twice.
func TestFlushStdio(t *testing.T) {
	kerneltest.Leaks(t)
	st, err := openStdio(nil, "", slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	tree, e := pipe(t, true)
	st.relay.addOut(3, e)
	agent, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	carrier, err := fdpass.New(peer)
	if err != nil {
		t.Fatal(err)
	}
	c := &carrierProcess{log: slog.Default(), stdio: st, agents: make(chan *fdpass.Socket), flushed: make(chan struct{}), end: relayEnd{carrier, st.relay}}
	ran := make(chan error)
	go func() { ran <- c.run(carrier) }()
	tgt := newTarget(nil, wire.ID{}, prepareMsg{}, slog.Default())
	tgt.stdio = newCarrierLink(carrierWays{}, agent, nil, slog.Default())
	tgt.stdio.listen()
	tgt.stdio.start()
	defer func() {
		tgt.stdio.close()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		carrier.Close()
	}()
	source := newRelay()
	reader, e := pipe(t, false)
	source.addIn(3, e)
	source.start()
	defer st.close()
	defer source.close()
	defer tgt.agentEnds()

	want := numbers(300_000)
	if _, err := tree.Write(want); err != nil {
		t.Fatal(err)
	}
	tree.Close()
	flushed := make(chan struct{})
	go func() {
		tgt.flushStdio()
		close(flushed)
	}()
	kerneltest.Eventually(t, "all of it to be read", func() bool { return st.relay.pending() == len(want) })
	early := func() {
		t.Helper()
		select {
		case <-flushed:
			t.Fatal("it does not wait for the source")
		default:
		}
	}
	early()
	connect := func(r *relay) (at *session) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ca, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		cb, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		at = newSession(wire.NewConn(ca), r)
		select {
		case tgt.sessions <- newSession(wire.NewConn(cb), tgt.stdio.relay):
		case <-flushed:
			t.Fatal("it does not wait for the source")
		}
		return at
	}
	s := connect(nil) // says nothing and goes away
	s.close()
	early()
	s = connect(source)
	source.attach(s)
	got, err := io.ReadAll(reader)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came of %d: %v", len(got), len(want), err)
	}
	<-flushed
	tgt.adopt(nil)
	source.attach(nil)
	s.close()
}
