package store

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// compared is what two files looked like when they were the same.
type compared struct {
	path         string
	size, ino    uint64
	theirs, ours wire.FileTime // of change
}

// sameOnce is sameAsOurs, but for files that have not changed since they were found to be the same: what runs programs all the time opens the same ones
// faster than they can be read.
func (s *Store) sameOnce(ctx context.Context, node uint64, p string, a wire.FileAttr) (bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil || st.Mode&unix.S_IFMT != a.Mode&unix.S_IFMT {
		return false, nil //nolint:nilerr // not there is another
	}
	c := compared{path: p, size: a.Size, ino: st.Ino, theirs: a.Ctime, ours: wire.FileTime{Sec: st.Ctim.Sec, Nsec: uint32(st.Ctim.Nsec)}}
	if s.plan.same[node] == c {
		return true, nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return true, nil
	}
	if st.Size != int64(a.Size) {
		return false, nil
	}
	same, settled, err := s.sameAsOurs(ctx, node, p, st.Size)
	if settled && time.Since(time.Unix(st.Ctim.Unix())) > ownSettled {
		s.plan.same[node] = c
	}
	return same, err
}

// ownSettled is how old a change must be for the next one to have another time.
const ownSettled = time.Second

// sameAsOurs compares a file of the source with the target's own of the same path and size. settled: they are the same, and theirs shows its next change.
func (s *Store) sameAsOurs(ctx context.Context, node uint64, p string, size int64) (same, settled bool, err error) {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return false, false, fmt.Errorf("open %s: %w", p, err)
	}
	defer func() { _ = unix.Close(fd) }()
	h, err := s.o.Remote.Open(ctx, nobody, node, unix.O_RDONLY|unix.O_NOATIME)
	if err != nil {
		return false, false, err
	}
	defer s.o.Remote.Release(node, h)
	settled = size > 0
	for off := int64(0); off < size; off += wire.MaxFileSum {
		theirs, _, still, err := s.o.Remote.Sum(ctx, node, h, off, min(wire.MaxFileSum, size-off))
		if err != nil {
			return false, false, err
		}
		ours, err := remotefs.Digest(fd, off, min(wire.MaxFileSum, size-off))
		if err != nil || ours != theirs {
			return false, false, err
		}
		settled = settled && still
	}
	return true, settled, nil
}
