package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// attributes gives the copy what the source's file has, in the order in which one does not undo the other: an owner takes mode bits and
// capabilities away, an ACL changes the mode, and all of them the times.
func (s *Store) attributes(ctx context.Context, w *work) error {
	o, a := w.o, &w.attr
	if !w.look && !changed(&o.attr, a) && o.stamped {
		return nil
	}
	w.look = true // until it is done
	if err := unix.Fchownat(w.fd, "", int(a.UID), int(a.GID), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set owner of copy: %w", err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", w.fd)
	if o.typ != unix.S_IFLNK {
		if err := unix.Fchmodat(unix.AT_FDCWD, path, a.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("set mode of copy: %w", err)
		}
	}
	if !w.bare || o.xattrs {
		if err := s.xattrs(ctx, w, path); err != nil {
			return err
		}
	}
	ts := []unix.Timespec{{Sec: a.Atime.Sec, Nsec: int64(a.Atime.Nsec)}, {Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}}
	if err := unix.UtimesNanoAt(w.fd, "", ts, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set times of copy: %w", err)
	}
	w.look = false
	return nil
}

func changed(a, b *wire.FileAttr) bool {
	return a.Size != b.Size || a.Mtime != b.Mtime || a.Ctime != b.Ctime
}

// xattrs makes the extended attributes the source's: ACLs and capabilities are among them.
func (s *Store) xattrs(ctx context.Context, w *work, path string) error {
	var names []byte
	if !w.bare {
		var err error
		if _, names, err = s.o.Remote.ListXattr(ctx, w.o.node, wire.MaxFileXattr); err != nil {
			if !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("list extended attributes: %w", err)
			}
			names = nil
		}
	}
	keep := map[string]bool{}
	for name := range bytes.SplitSeq(bytes.TrimSuffix(names, []byte{0}), []byte{0}) {
		if len(name) == 0 {
			continue
		}
		n := string(name)
		_, v, err := s.o.Remote.GetXattr(ctx, w.o.node, n, wire.MaxFileXattr)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("read attribute %q: %w", n, err)
		}
		keep[n] = true
		if err := unix.Setxattr(path, n, v, 0); err != nil {
			return fmt.Errorf("set attribute %q of copy (the store's file system must support it): %w", n, err)
		}
	}
	w.o.xattrs = len(keep) > 0
	b := make([]byte, wire.MaxFileXattr)
	n, err := unix.Listxattr(path, b)
	if err != nil {
		return nil //nolint:nilerr // a file system without them has none too many
	}
	for name := range bytes.SplitSeq(bytes.TrimSuffix(b[:n], []byte{0}), []byte{0}) {
		if x := string(name); x != "" && !keep[x] && x != "security.selinux" { // that one is the target's policy
			if err := unix.Removexattr(path, x); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("remove attribute %q of copy: %w", x, err)
			}
		}
	}
	return nil
}

// stamp notes what the source's file looked like when the copy was right.
func (s *Store) stamp(w *work) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := w.o
	o.attr = w.attr
	o.stamped = len(w.data) == 0 && len(w.check) == 0
	o.right = o.isReg() && !o.declared && o.stamped && len(o.data) == 0 && len(o.check) == 0
	if o.stamped {
		w.own = false
	}
}
