package migrate

import (
	"bytes"
	"net"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestSessionDeaf: a session that does not read any more, after silence or what is no frame, is no connection: its pings would keep the peer from dialing again.
func TestSessionDeaf(t *testing.T) {
	kerneltest.Leaks(t)
	here, there := net.Pipe()
	s := newSession(wire.NewConn(here), nil)
	defer s.close()
	peer := wire.NewConn(there)
	defer peer.Close()
	go func() { _, _ = there.Write(bytes.Repeat([]byte{0xff}, 64)) }() // no frame: it ends with the reader
	for range s.frames {
		t.Error("a frame that nobody sent")
	}
	for pings := 0; ; pings++ {
		if _, _, err := peer.Recv(); err != nil {
			return
		}
		if pings > 1 {
			t.Fatal("it pings on")
		}
	}
}
