package pagesrv

import (
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/lazymig/lazymig/wire"
)

// FuzzClient feeds arbitrary bytes of an authenticated peer to a client that has asked: each request is answered once, nothing is written
// outside its buffer, and the lane ends.
func FuzzClient(f *testing.F) {
	frame := func(t wire.Type, id uint64, parts ...[]byte) []byte {
		var b []byte
		for _, p := range parts {
			b = append(b, p...)
		}
		h := make([]byte, wire.HeaderSize)
		wire.Header{Length: uint32(len(b)), Type: t, ID: id}.Put(h)
		return append(h, b...)
	}
	f.Add(frame(wire.MsgPaged, 1, appendRuns(nil, []Run{{Kind: KindData, Pages: 1}, {Kind: KindZero, Pages: 1}}), make([]byte, PageSize)))
	f.Add(frame(wire.MsgPaged, 1, appendRuns(nil, []Run{{Kind: KindData, Pages: 2}}), make([]byte, 2*PageSize)))
	f.Add(frame(wire.MsgPaged, 1, appendRuns(nil, []Run{{Kind: KindError, Errno: 5, Pages: 2}})))
	f.Add(append(frame(wire.MsgError, 1, wire.MarshalError(ErrClosed)), frame(wire.MsgPaged, 1)...))
	f.Add(frame(wire.MsgLaid, 2, []byte{0, 0, 0, 0}))
	f.Add(frame(wire.MsgPing, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, lane := range []wire.Lane{wire.LaneUrgent, wire.LaneBulk} {
			mine, theirs := net.Pipe()
			c := NewClient(ClientOptions{})
			go func() { _, _ = io.Copy(io.Discard, theirs) }() // ends with the lane
			c.Attach(lane, wire.NewConn(mine))
			var answers [2]atomic.Int32
			buf := make([]byte, 3*PageSize)
			for i := range buf[2*PageSize:] {
				buf[2*PageSize+i] = 0xa5
			}
			asked := []bool{
				c.Fetch(lane, Request{Task: 1, Addr: PageSize, Pages: 2}, buf[:2*PageSize:2*PageSize], func(Reply, error) { answers[0].Add(1) }) == nil,
				c.Layout(lane, LayoutRequest{Task: 1, Start: 0, End: 1 << 30}, func(Layout, error) { answers[1].Add(1) }) == nil,
			}
			_, _ = theirs.Write(b)
			_ = theirs.Close()
			_ = c.Close()
			for i, was := range asked {
				if n := answers[i].Load(); was && n != 1 || !was && n != 0 {
					t.Errorf("request %d had %d answers", i, n)
				}
			}
			for _, x := range buf[2*PageSize:] {
				if x != 0xa5 {
					t.Fatal("written behind the buffer")
				}
			}
		}
	})
}
