package lazyfs

import (
	"context"

	"github.com/lazymig/lazymig/wire"
)

// What the tree asks while writes are pending.

func (s *stream) Read(ctx context.Context, node, h, off uint64, b []byte) (int, error) {
	if err := s.behind(ctx, node); err != nil {
		return 0, err
	}
	return s.Remote.Read(ctx, node, h, off, b)
}

func (s *stream) Write(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte) (int, error) {
	if err := s.behind(ctx, node); err != nil {
		return 0, err
	}
	return s.Remote.Write(ctx, who, node, h, off, flags, b)
}

func (s *stream) GetAttr(ctx context.Context, node uint64) (wire.FileAttr, error) {
	if err := s.behind(ctx, node); err != nil {
		return wire.FileAttr{}, err
	}
	return s.Remote.GetAttr(ctx, node)
}

func (s *stream) SetAttr(ctx context.Context, who wire.FileCaller, node uint64, c wire.FileSetAttr) (wire.FileAttr, error) {
	if err := s.behind(ctx, node); err != nil {
		return wire.FileAttr{}, err
	}
	return s.Remote.SetAttr(ctx, who, node, c)
}

// Fsync is sent behind the writes, and tells their errors.
func (s *stream) Fsync(ctx context.Context, who wire.FileCaller, node, h uint64, data bool) error {
	if err := s.behind(ctx, node); err != nil {
		return err
	}
	s.mu.Lock()
	before := append([]*streamed(nil), s.nodes[node]...)
	s.mu.Unlock()
	err := s.Remote.Fsync(ctx, who, node, h, data)
	for _, r := range before { // the source has answered them before
		if err := s.await(ctx, r.answered); err != nil {
			return err
		}
	}
	if late := s.errs.take(node, h, who.Number); late != nil && (err == nil || told(err) != 0) {
		return late
	}
	return err
}

// flush is a close of a descriptor.
func (s *stream) flush(ctx context.Context, who wire.FileCaller, node, h uint64) error {
	if err := s.done(ctx, node); err != nil {
		return err
	}
	return s.errs.take(node, h, who.Number)
}

func (s *stream) Fallocate(ctx context.Context, who wire.FileCaller, node, h uint64, mode uint32, off, n int64) error {
	if err := s.behind(ctx, node); err != nil {
		return err
	}
	return s.Remote.Fallocate(ctx, who, node, h, mode, off, n)
}

func (s *stream) Lseek(ctx context.Context, node, h uint64, off int64, whence uint32) (int64, error) {
	if err := s.behind(ctx, node); err != nil {
		return 0, err
	}
	return s.Remote.Lseek(ctx, node, h, off, whence)
}

// CopyRange: the order is kept for the node that a request begins with, not for the other.
func (s *stream) CopyRange(ctx context.Context, who wire.FileCaller, node, h uint64, off int64, node2, h2 uint64, off2 int64, n uint64) (uint32, error) {
	for _, x := range []uint64{node, node2} {
		if err := s.done(ctx, x); err != nil {
			return 0, err
		}
	}
	return s.Remote.CopyRange(ctx, who, node, h, off, node2, h2, off2, n)
}

// Extended attributes: a write takes a file's capabilities away.
func (s *stream) SetXattr(ctx context.Context, who wire.FileCaller, node uint64, name string, v []byte, flags uint32, kill bool) error {
	if err := s.behind(ctx, node); err != nil {
		return err
	}
	return s.Remote.SetXattr(ctx, who, node, name, v, flags, kill)
}

func (s *stream) RemoveXattr(ctx context.Context, who wire.FileCaller, node uint64, name string) error {
	if err := s.behind(ctx, node); err != nil {
		return err
	}
	return s.Remote.RemoveXattr(ctx, who, node, name)
}

func (s *stream) GetXattr(ctx context.Context, node uint64, name string, size uint32) (uint32, []byte, error) {
	if err := s.behind(ctx, node); err != nil {
		return 0, nil, err
	}
	return s.Remote.GetXattr(ctx, node, name, size)
}

func (s *stream) ListXattr(ctx context.Context, node uint64, size uint32) (uint32, []byte, error) {
	if err := s.behind(ctx, node); err != nil {
		return 0, nil, err
	}
	return s.Remote.ListXattr(ctx, node, size)
}

func (s *stream) Release(node, h uint64) {
	if s.done(s.ctx, node) != nil {
		return // at the end
	}
	s.errs.released(h)
	s.Remote.Release(node, h)
}

// Forget: the node is needed as long as it is written. It may wait.
func (s *stream) Forget(f []wire.FileForget) {
	for _, x := range f {
		if s.done(s.ctx, x.Node) != nil {
			return // at the end
		}
	}
	s.Remote.Forget(f)
}

func (s *stream) Lookup(ctx context.Context, who wire.FileCaller, dir uint64, name string) (wire.FileEntry, error) {
	asked := s.now()
	e, err := s.Remote.Lookup(ctx, who, dir, name)
	return s.fresh(ctx, e, err, asked)
}

func (s *stream) Link(ctx context.Context, who wire.FileCaller, node, dir uint64, name string) (wire.FileEntry, error) {
	asked := s.now()
	e, err := s.Remote.Link(ctx, who, node, dir, name)
	return s.fresh(ctx, e, err, asked)
}

func (s *stream) Create(ctx context.Context, who wire.FileCaller, dir uint64, name string, flags, mode, umask uint32) (uint64, wire.FileEntry, error) {
	asked := s.now()
	h, e, err := s.Remote.Create(ctx, who, dir, name, flags, mode, umask)
	e, err = s.fresh(ctx, e, err, asked)
	return h, e, err
}

func (s *stream) now() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

// fresh replaces attributes that may be from before a write which the tree believes to be done.
func (s *stream) fresh(ctx context.Context, e wire.FileEntry, err error, asked uint64) (wire.FileEntry, error) {
	if err != nil {
		return e, err
	}
	s.mu.Lock()
	old := len(s.nodes[e.Node]) > 0 || s.changed[e.Node] > asked || s.floor > asked
	s.mu.Unlock()
	if !old {
		return e, nil
	}
	a, err := s.GetAttr(ctx, e.Node)
	if err == nil {
		e.Attr = a
	} else if told(err) != 0 {
		err = nil // the node is there: it was just looked up
	}
	return e, err
}
