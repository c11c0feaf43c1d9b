package restore

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// keptName names a descriptor that the guardian keeps open.
type keptName struct {
	ID uint32 `json:"id"`
}

// Keep gives the guardian a copy of a descriptor, such as the other end of a pipe that the tree has: an agent that dies
// then makes the tree wait, where it would get a SIGPIPE. The file stays the caller's.
func (c *Capsule) Keep(ctx context.Context, id uint32, f *os.File) error {
	if _, _, err := c.call(ctx, opKeep, keptName{id}, f); err != nil {
		return fmt.Errorf("let guardian keep descriptor %d: %w", id, err)
	}
	return nil
}

// Drop closes the guardian's copy.
func (c *Capsule) Drop(ctx context.Context, id uint32) error {
	if _, _, err := c.call(ctx, opDrop, keptName{id}); err != nil {
		return fmt.Errorf("let guardian drop descriptor %d: %w", id, err)
	}
	return nil
}

// keep handles both, in serve's goroutine.
func (g *guardian) keep(m message, files []*os.File) error {
	var n keptName
	err := json.Unmarshal(m.Body, &n)
	old, has := g.kept[n.ID]
	switch {
	case err != nil, (m.Op == opKeep) != (len(files) == 1), len(files) > 1, m.Op == opKeep && (has || len(g.kept) >= maxInherit):
		fdpass.CloseAll(files)
		return errMessage
	case m.Op == opDrop && has:
		delete(g.kept, n.ID)
		return old.Close()
	case m.Op == opKeep:
		g.kept[n.ID] = files[0]
	}
	return nil
}
