package restore

import (
	"context"
	"fmt"
	"os"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/restore/memory"
)

// Hot tells the guardian which pages are to be asked for first, the hottest first. Before StartDrain.
func (c *Capsule) Hot(list []memory.HotPages) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	f, err := writePages("lazymig-hot", list, func(h memory.HotPages) pageEntry { return pageEntry{h.Task, h.Words, h.Addr, h.Mask} })
	if err != nil {
		return fmt.Errorf("list hot pages: %w", err)
	}
	defer f.Close()
	if _, _, err := c.call(ctx, opHot, nil, f); err != nil {
		return fmt.Errorf("hand list of hot pages over: %w", err)
	}
	return nil
}

func (g *guardian) takeHot(files []*os.File) error {
	defer fdpass.CloseAll(files)
	e := g.hub.getEngine()
	if len(files) != 1 || e == nil {
		return errMessage
	}
	list, err := readPages(files[0], memory.MaxHot, func(e pageEntry) memory.HotPages {
		return memory.HotPages{Task: e.task, Words: e.count, Addr: e.addr, Mask: e.about}
	})
	if err != nil {
		return fmt.Errorf("hot pages: %w", err)
	}
	return e.Hot(list)
}
