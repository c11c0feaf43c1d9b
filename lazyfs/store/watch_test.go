package store

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// stamper is a source whose one file has new times whenever it is looked at.
type stamper struct {
	Remote
	attr wire.FileAttr
}

func (s *stamper) Stamps(context.Context, []uint64) ([]remotefs.FileStamp, error) {
	s.attr.Mtime.Sec++
	return []remotefs.FileStamp{{Attr: s.attr}}, nil
}

// TestOwnWrites: the source has done a write of the tree's each time before the store is told of it, which then copies it. That was nobody else; who writes and nobody tells
// of it was.
func TestOwnWrites(t *testing.T) {
	from := &stamper{attr: wire.FileAttr{Ino: 1, Size: 10}}
	s, err := New(t.Context(), Options{Dir: t.TempDir(), Remote: from})
	must(t, err)
	defer s.Close()
	o := &object{node: 7, typ: unix.S_IFREG, names: map[place]struct{}{{s.root, "f"}: {}}, in: true, fd: -1}
	s.byNode[o.node] = o
	copied := func() {
		o.data, o.check, o.look, o.own, o.stamped, o.attr = nil, nil, false, false, true, from.attr
		delete(s.dirty, o)
	}
	copied()
	delete(s.dirty, s.root)
	s.root.in = false
	for range 5 {
		must(t, s.compareStamps(t.Context(), false))
		s.Wrote(o.node, 0, 10)
		copied()
	}
	if n := s.foreign["/f"]; n > 0 {
		t.Errorf("somebody else has changed the file %d times", n)
	}
	for range 2 {
		must(t, s.compareStamps(t.Context(), false))
	}
	if s.foreign["/f"] != 1 {
		t.Errorf("a change that the tree has not made is seen %d times", s.foreign["/f"])
	}
}
