package pagesrv

import (
	"io"
	"net"
	"testing"

	"github.com/lazymig/lazymig/wire"
)

// FuzzServe feeds a server arbitrary bytes: it ends, and doesn't panic.
func FuzzServe(f *testing.F) {
	p := start(f)
	s := newServer(f, Task{uint32(p.pid), p.pid})
	frame := func(t wire.Type, b []byte) []byte {
		h := make([]byte, wire.HeaderSize)
		wire.Header{Length: uint32(len(b)), Type: t, ID: 1}.Put(h)
		return append(h, b...)
	}
	good := Request{uint32(p.pid), p.area(f, "mixed_prot").start, 64}
	f.Add(frame(wire.MsgPages, good.appendTo(nil)))
	f.Add(append(frame(wire.MsgPages, good.appendTo(nil)), frame(wire.MsgPing, nil)...))
	f.Add(frame(wire.MsgLayout, LayoutRequest{good.Task, 0, 1 << 47}.encode()))
	f.Add(frame(wire.MsgPages, Request{good.Task, 1<<64 - PageSize, 1<<32 - 1}.appendTo(nil)))
	f.Add(frame(wire.MsgPages, appendParts(nil, []Request{good, {good.Task, good.Addr + 64*PageSize, 1}, {good.Task, 0x1000, 9}})))
	f.Add(frame(wire.MsgPages, appendParts(nil, []Request{good, {good.Task, good.Addr, 256}})))
	f.Add(frame(wire.MsgPaged, nil))
	f.Add([]byte("GET / HTTP/1.0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, lane := range []wire.Lane{wire.LaneUrgent, wire.LaneBulk} {
			mine, theirs := net.Pipe()
			ended := make(chan error, 1)
			go func() { ended <- s.Serve(t.Context(), wire.NewConn(theirs), lane) }()
			drained := make(chan struct{})
			go func() { _, _ = io.Copy(io.Discard, mine); close(drained) }()
			_, _ = mine.Write(b)
			_ = mine.Close()
			await(t, "end of Serve", ended)
			<-drained
		}
	})
}
