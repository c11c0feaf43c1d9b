package remotefs

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// FuzzClient feeds arbitrary bytes of an authenticated server to a client that waits for answers: every call ends, and reads do not go
// beyond their buffers.
func FuzzClient(f *testing.F) {
	frame := func(t wire.Type, id uint64, b []byte) []byte {
		h := make([]byte, wire.HeaderSize)
		wire.Header{Length: uint32(len(b)), Type: t, ID: id}.Put(h)
		return append(h, b...)
	}
	var entry, dirent wire.Encoder
	(&wire.FileDirent{Name: "n", Entry: wire.FileEntry{Node: 3}}).Put(&dirent)
	dirent.Bool(true)
	var x wire.FileEntry
	x.Put(&entry)
	for id := uint64(ownID | 1); id < ownID|6; id++ {
		f.Add(frame(wire.MsgFileLookup+1, id, entry.B))
		f.Add(frame(wire.MsgFileRead+1, id, make([]byte, 16)))
		f.Add(frame(wire.MsgFileRead+1, id, make([]byte, 64)))
		f.Add(frame(wire.MsgFileReadDir+1, id, dirent.B))
		f.Add(frame(wire.MsgError, id, wire.MarshalError(unix.ENOENT)))
	}
	f.Add(frame(wire.MsgFileAttach+1, 0, []byte{1, 2, 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		mine, theirs := net.Pipe()
		c := NewClient(wire.NewConn(mine), ClientOptions{})
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
		ctx := context.Background()
		buf := make([]byte, 32)
		buf[16] = 0xa5
		for _, call := range []func(){
			func() { _, _ = c.Lookup(ctx, wire.FileCaller{}, 1, "n") },
			func() {
				if n, err := c.Read(ctx, 1, 1, 0, buf[:16:16]); err == nil && n > 16 {
					t.Errorf("%d bytes of 16", n)
				}
			},
			func() { _, _, _ = c.ReadDir(ctx, 1, 1, 0, 4096, true) },
			func() { _, _ = c.Tree(ctx, 1, 10, 10) },
			func() {
				if _, v, err := c.GetXattr(ctx, 1, "user.x", 64); err == nil && len(v) > 64 {
					t.Errorf("%d bytes of 64", len(v))
				}
			},
			func() { _, _ = c.Statfs(ctx, 1) },
		} {
			wg.Go(call)
		}
		_, _ = theirs.Write(b)
		_ = theirs.Close()
		within(t, "the calls' end", wg.Wait)
		within(t, "the client's end", func() { _ = c.Close() })
		if buf[16] != 0xa5 {
			t.Error("written behind the buffer")
		}
	})
}
