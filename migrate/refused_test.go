package migrate

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestRefused: nothing is granted when a person has given up, or the target has, right before. A connection that has ended says nothing.
func TestRefused(t *testing.T) {
	kerneltest.Leaks(t)
	here, there := net.Pipe()
	peer := wire.NewConn(there)
	s := &Source{sess: newSession(wire.NewConn(here), nil)}
	defer s.sess.close()
	if err := s.refused(t.Context()); err != nil {
		t.Errorf("nothing has happened: %v", err)
	}
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(errAborted)
	if err := s.refused(gone); !errors.Is(err, errAborted) {
		t.Errorf("a person has given up: %v", err)
	}
	why := errors.New("the tree is dead")
	if err := peer.Send(wire.MsgError, 0, 0, wire.MarshalError(why)); err != nil {
		t.Fatal(err)
	}
	kerneltest.Eventually(t, "target's word", func() bool {
		err := s.refused(t.Context())
		return err != nil && strings.Contains(err.Error(), why.Error())
	})
	peer.Close()
	for range s.sess.frames { // up to the end
		t.Error("another frame")
	}
	if err := s.refused(t.Context()); err != nil {
		t.Errorf("the connection has ended: %v", err)
	}
}
