package migrate

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/wire"
)

// newAgent is an agent that serves on the loopback until the test ends.
func newAgent(t *testing.T, patience time.Duration) (a *Agent, k *keys.Keys) {
	t.Helper()
	dir := t.TempDir()
	tls := filepath.Join(dir, "keys")
	if err := errors.Join(keys.Init(tls), keys.Host(tls, "127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	k, err := keys.Load(tls)
	if err != nil {
		t.Fatal(err)
	}
	a, err = NewAgent(AgentOptions{
		Listen: "127.0.0.1:0", StateDir: filepath.Join(dir, "state"), TLSDir: tls,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	a.patience, a.free = patience, startsNothing
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a, k
}

// startsNothing is what has no program to start.
var startsNothing = freeHere{Here: restore.Here{Here: parts.Here{Exe: "/nonexistent"}}}

// silent opens connections that say nothing, or stop anywhere in what comes before TLS ends.
func silent(t *testing.T, a *Agent, n int) (all []net.Conn) {
	t.Helper()
	var hello [wire.PreambleSize + 5]byte // and the head of a TLS record of 16 KB that never comes
	copy(hello[:], preamble(t, wire.LaneControl, wire.NewID()))
	copy(hello[wire.PreambleSize:], []byte{22, 3, 1, 0x40, 0})
	for i := range n {
		nc, err := net.Dial("tcp", a.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		_, _ = nc.Write(hello[:i%(len(hello)+1)]) // it may have been given up already
		all = append(all, nc)
	}
	return all
}

// TestFlood: peers without a certificate that open connections and say nothing keep nobody out.
func TestFlood(t *testing.T) {
	kerneltest.Leaks(t)
	a, k := newAgent(t, time.Hour)
	all := silent(t, a, 2*maxPending)
	id := wire.NewID()
	d := &dialer{addr: a.Addr().String(), keys: k, id: id}
	c, err := d.dial(t.Context(), wire.LaneControl)
	if err != nil {
		t.Fatalf("a peer with a certificate is kept out: %v", err)
	}
	defer c.Close()
	if err := c.Send(wire.MsgPing, 0, 7); err != nil {
		t.Fatal(err)
	}
	if h, _, err := c.Recv(); err != nil || h.Type != wire.MsgPong || h.ID != 7 {
		t.Errorf("answer to a ping: %+v, %v", h, err)
	}
	ended(t, all[:maxPending]...) // the oldest had to go
}

// TestSilentPeers: whoever stops on the way, or says nothing once it is known, is given up.
func TestSilentPeers(t *testing.T) {
	kerneltest.Leaks(t)
	a, _ := newAgent(t, 50*time.Millisecond)
	ended(t, silent(t, a, wire.PreambleSize+6)...)
	here, there := net.Pipe()
	defer there.Close()
	a.converse(t.Context(), wire.NewConn(here), wire.NewID(), nil, a.opt.Log) // returns
	here.Close()
}

// ended waits until the agent has given connections up.
func ended(t *testing.T, all ...net.Conn) {
	t.Helper()
	for i, nc := range all {
		if err := nc.SetReadDeadline(time.Now().Add(kerneltest.Patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d lives for ever", i)
		}
	}
}

func preamble(t testing.TB, l wire.Lane, id wire.ID) []byte {
	t.Helper()
	var b strings.Builder
	if _, err := (wire.Preamble{Lane: l, ID: id}).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String())
}

// FuzzConverse feeds an agent what a peer with a certificate may say on a control connection: it ends, and leaves nothing but a record.
func FuzzConverse(f *testing.F) {
	kerneltest.Need(f, kerneltest.Root, kerneltest.FUSE)
	frame := func(typ wire.Type, b []byte) []byte {
		h := make([]byte, wire.HeaderSize)
		wire.Header{Length: uint32(len(b)), Type: typ, ID: 1}.Put(h)
		return append(h, b...)
	}
	f.Add(frame(wire.MsgPing, nil))
	f.Add(frame(wire.MsgClock, encode(clockMsg{Sent: 1})))
	f.Add(append(frame(wire.MsgClock, []byte("{")), frame(wire.MsgAbort, nil)...))
	f.Add(frame(wire.MsgState, encode(stateMsg{State: Granted})))
	f.Add(frame(wire.MsgState, []byte(`{"state":"aborted","token":[1]}`)))
	f.Add(frame(wire.MsgPrepare, encode(prepareMsg{Host: "h", PIDs: []int32{1}, Comm: "c"})))
	f.Add(frame(wire.MsgPrepare, []byte(`{"pids":[1],"stdio":"../x","memory":-1}`)))
	f.Add(frame(wire.MsgGrant, nil))
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<31))
	dir := f.TempDir()
	a := &Agent{opt: AgentOptions{StateDir: dir, TLSDir: dir, Log: slog.New(slog.DiscardHandler)}, free: startsNothing, patience: time.Hour, targets: map[wire.ID]*Target{}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var id wire.ID
		_, _ = rand.Read(id[:])
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer here.Close()
			a.converse(t.Context(), wire.NewConn(here), id, nil, a.opt.Log)
		}()
		drained := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, there); close(drained) }()
		_, _ = there.Write(b)
		_ = there.Close()
		<-done
		<-drained
		if len(a.targets) != 0 {
			t.Error("a migration is left")
		}
		_ = os.RemoveAll(recordDir(dir, id, SideTarget)) // there only if one had begun
	})
}
