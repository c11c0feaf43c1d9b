package restore

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/restore/memory"
)

// aheadSize is one entry of the list that goes with pages copied ahead: task 4, pages 4, address 8, offset 8.
const aheadSize = 24

// Ahead gives the guardian pages that were copied before the freeze, and are still as they were: data holds them, list says which, in order of task and
// address. After Restore, before StartDrain. The file stays the caller's; the guardian frees what it has placed.
func (c *Capsule) Ahead(ctx context.Context, data *os.File, list []memory.CopiedPages) error {
	fd, err := unix.MemfdCreate("lazymig-ahead", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("list pages copied ahead: %w", err)
	}
	index := os.NewFile(uintptr(fd), "ahead")
	defer index.Close()
	b := make([]byte, 0, len(list)*aheadSize)
	for _, x := range list {
		b = binary.NativeEndian.AppendUint32(b, x.Task)
		b = binary.NativeEndian.AppendUint32(b, x.Pages)
		b = binary.NativeEndian.AppendUint64(b, x.Addr)
		b = binary.NativeEndian.AppendUint64(b, x.Off)
	}
	if _, err := index.WriteAt(b, 0); err != nil {
		return fmt.Errorf("list pages copied ahead: %w", err)
	}
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
	b, err := io.ReadAll(io.NewSectionReader(files[1], 0, 1<<40))
	if err != nil {
		return fmt.Errorf("read list of pages copied ahead: %w", err)
	}
	list := make([]memory.CopiedPages, 0, len(b)/aheadSize)
	for ; len(b) >= aheadSize; b = b[aheadSize:] {
		list = append(list, memory.CopiedPages{
			Task: binary.NativeEndian.Uint32(b), Pages: binary.NativeEndian.Uint32(b[4:]),
			Addr: binary.NativeEndian.Uint64(b[8:]), Off: binary.NativeEndian.Uint64(b[16:]),
		})
	}
	return e.Copied(files[0], list)
}
