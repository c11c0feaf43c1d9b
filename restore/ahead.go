package restore

import (
	"context"
	"fmt"
	"os"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/restore/memory"
)

// mostCopied is how many entries a list of pages copied ahead may have: 1 TB, where no two pages lie side by side.
const mostCopied = 1 << 28

// Ahead gives the guardian pages that were copied before the freeze, and are still as they were: data holds them, list says which, in order of task and
// address. After Restore, before StartDrain. The file stays the caller's; the guardian frees what it has placed.
func (c *Capsule) Ahead(ctx context.Context, data *os.File, list []memory.CopiedPages) error {
	index, err := writePages("lazymig-ahead", list, func(p memory.CopiedPages) pageEntry { return pageEntry{p.Task, p.Pages, p.Addr, p.Off} })
	if err != nil {
		return fmt.Errorf("list pages copied ahead: %w", err)
	}
	defer index.Close()
	if _, _, err := c.call(ctx, opAhead, nil, data, index); err != nil {
		return fmt.Errorf("hand pages copied ahead over: %w", err)
	}
	return nil
}

func (g *guardian) takeAhead(files []*os.File) error {
	defer fdpass.CloseAll(files)
	e := g.hub.getEngine()
	if len(files) != 2 || e == nil {
		return errMessage
	}
	list, err := readPages(files[1], mostCopied, func(e pageEntry) memory.CopiedPages {
		return memory.CopiedPages{Task: e.task, Pages: e.count, Addr: e.addr, Off: e.about}
	})
	if err != nil {
		return fmt.Errorf("pages copied ahead: %w", err)
	}
	return e.Copied(files[0], list)
}
