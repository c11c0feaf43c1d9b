package lazyfs

import (
	"context"
	"fmt"
	"time"
)

// Who waits for streamed writes.

// pending says whether writes, to a file or at all (0), are not answered.
func (s *stream) pending(node uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return node == 0 && len(s.nodes) > 0 || len(s.nodes[node]) > 0
}

// behind waits until all that was taken for a file has been sent: what is asked now is done after it.
func (s *stream) behind(ctx context.Context, node uint64) error {
	s.mu.Lock()
	list := s.nodes[node]
	var last *streamed
	if len(list) > 0 {
		last = list[len(list)-1] // they are sent in order
	}
	s.mu.Unlock()
	if last == nil {
		return nil
	}
	return s.await(ctx, last.sent)
}

// done waits until all that was taken for a file has been answered.
func (s *stream) done(ctx context.Context, node uint64) error {
	s.mu.Lock()
	list := append([]*streamed(nil), s.nodes[node]...)
	s.mu.Unlock()
	for _, r := range list {
		if err := s.await(ctx, r.answered); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-s.lost:
		return s.why
	case <-ctx.Done():
		return fmt.Errorf("wait for writes to reach the source: %w", context.Cause(ctx))
	}
}

// settle waits until nothing is pending.
func (s *stream) settle(ctx context.Context) error {
	s.mu.Lock()
	nodes := make([]uint64, 0, len(s.nodes))
	for node := range s.nodes {
		nodes = append(nodes, node)
	}
	s.mu.Unlock()
	for _, node := range nodes {
		if err := s.done(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// calmTime is how long nothing is streamed once a calm has come: long enough for who then stops the tree.
const calmTime = 10 * time.Second

// becalm is settle for who is about to stop the tree: meanwhile, and for a while after it, each write waits for the source.
func (s *stream) becalm(ctx context.Context) error {
	s.mu.Lock()
	s.calmers++
	s.moveLocked()
	s.mu.Unlock()
	err := s.settle(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calmers--
	if err == nil {
		s.calm = time.Now().Add(s.calms)
	}
	return err
}

// lastWait is how long a daemon whose mount is gone tries to bring to the source what the tree has written.
const lastWait = time.Minute

// unmounted is settle at the end of the mount.
func (s *stream) unmounted() {
	ctx, stop := context.WithTimeout(s.ctx, lastWait)
	defer stop()
	if err := s.settle(ctx); err != nil {
		s.mu.Lock()
		n := len(s.log)
		s.mu.Unlock()
		s.f.log.Error("the mount is gone, and writes of the tree have not reached the source", "writes", n, "err", err)
	}
}
