package restore

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// keptName names a descriptor that the guardian keeps open.
type keptName struct {
	ID uint32 `json:"id"`
}

// KeepBeside is the first number of what is kept for who carries a stream after another was killed. What has a lower one is an end of a stream that the tree sees: as
// long as there is one of them the guardian does not leave.
const KeepBeside = 256

// keptMost are how many descriptors are kept: for each that a tree may inherit four, and one.
const keptMost = 4*maxInherit + 1

// Keep gives the guardian a copy of a descriptor, such as the other end of a pipe that the tree has: an agent that dies
// then makes the tree wait, where it would get a SIGPIPE. The file stays the caller's.
func (c *Capsule) Keep(ctx context.Context, id uint32, f *os.File) error {
	if _, _, err := c.call(ctx, opKeep, keptName{id}, f); err != nil {
		return fmt.Errorf("let guardian keep descriptor %d: %w", id, err)
	}
	return nil
}

// Kept are copies of all that the guardian keeps; they are the caller's.
func (c *Capsule) Kept(ctx context.Context) (map[uint32]*os.File, error) {
	kept := map[uint32]*os.File{}
	for from, more := uint32(0), true; more; {
		m, files, err := c.call(ctx, opKept, keptName{from})
		var a keptAnswer
		if err == nil {
			err = json.Unmarshal(m.Body, &a)
		}
		if err == nil && len(a.IDs) != len(files) {
			err = errMessage
		}
		if err != nil {
			fdpass.CloseAll(files)
			for _, f := range kept {
				f.Close()
			}
			return nil, fmt.Errorf("ask guardian for what it keeps: %w", err)
		}
		for i, id := range a.IDs {
			kept[id] = files[i]
			from = id + 1
		}
		more = a.More
	}
	return kept, nil
}

// keptAnswer has a number for each descriptor that comes with it.
type keptAnswer struct {
	IDs  []uint32 `json:"ids"`
	More bool     `json:"more,omitempty"`
}

// tellKept answers with what is kept from a number on, as much as one message holds.
func (g *guardian) tellKept(m message) {
	var n keptName
	if err := json.Unmarshal(m.Body, &n); err != nil {
		g.answer(m, errMessage, nil)
		return
	}
	var a keptAnswer
	var files []*os.File
	for _, id := range slices.Sorted(maps.Keys(g.kept)) {
		if id < n.ID {
			continue
		}
		if a.More = len(files) == fdpass.MaxFiles; a.More {
			break
		}
		a.IDs, files = append(a.IDs, id), append(files, g.kept[id])
	}
	g.answer(m, nil, a, files...)
}

// ends are how many streams of the tree have their other end here.
func (g *guardian) ends() (n int) {
	for id := range g.kept {
		if id < KeepBeside {
			n++
		}
	}
	return n
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
	case err != nil, (m.Op == opKeep) != (len(files) == 1), len(files) > 1, m.Op == opKeep && (has || len(g.kept) >= keptMost):
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
