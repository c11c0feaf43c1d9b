package migrate

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestOutliveDied: a FUSE daemon that dies over the question whether it may be outlived has been, once another one follows it: there will be no other answer.
func TestOutliveDied(t *testing.T) {
	kerneltest.Leaks(t)
	sock, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	d := newFuseDaemon(nil, fuseConfig{}, func() {}, slog.New(slog.DiscardHandler))
	d.sock = sock
	read := make(chan struct{})
	go func() { d.read(); close(read) }()
	keeper, err := fdpass.New(peer)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() {
		told <- func() error {
			buf := make([]byte, fdpass.MaxMessage)
			for _, answer := range []string{"restarted", "outlive"} {
				n, _, err := keeper.Recv(buf)
				if err != nil {
					return err
				}
				var m fuseMsg
				if err := json.Unmarshal(buf[:n], &m); err != nil || m.Op != "outlive" {
					t.Errorf("agent says %q, %v", buf[:n], err)
				}
				if err := keeper.Send(encode(fuseMsg{Op: answer})); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 { // and each answer is taken once
		if err := d.outlive(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := <-told; err != nil {
		t.Error(err)
	}
	keeper.Close()
	<-read
	sock.Close()
}

// TestLaneNews: the last word counts, and whoever says it never waits.
func TestLaneNews(t *testing.T) {
	n := newLaneNews()
	for range 100 {
		n.say(true, wire.LaneFiles, wire.LaneUrgent)
		n.say(false, wire.LaneFiles)
		n.say(true, wire.LaneFiles)
		n.say(false, wire.LaneUrgent)
	}
	<-n.some
	missing, come := n.take()
	if len(missing) != 1 || missing[0] != wire.LaneFiles || len(come) != 1 || come[0] != wire.LaneUrgent {
		t.Errorf("missing %v, come %v", missing, come)
	}
	if missing, come = n.take(); len(missing)+len(come) > 0 {
		t.Errorf("again: missing %v, come %v", missing, come)
	}
}
