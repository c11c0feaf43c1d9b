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

// hotSize is one entry of the list of hot pages: task 4, words 4, address 8, mask 8.
const hotSize = 24

// Hot tells the guardian which pages are to be asked for first, the hottest first. Before StartDrain.
func (c *Capsule) Hot(list []memory.HotPages) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	fd, err := unix.MemfdCreate("lazymig-hot", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("list hot pages: %w", err)
	}
	f := os.NewFile(uintptr(fd), "hot")
	defer f.Close()
	b := make([]byte, 0, len(list)*hotSize)
	for _, x := range list {
		b = binary.NativeEndian.AppendUint32(b, x.Task)
		b = binary.NativeEndian.AppendUint32(b, x.Words)
		b = binary.NativeEndian.AppendUint64(b, x.Addr)
		b = binary.NativeEndian.AppendUint64(b, x.Mask)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("list hot pages: %w", err)
	}
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
	b, err := io.ReadAll(io.NewSectionReader(files[0], 0, memory.MaxHot*hotSize))
	if err != nil {
		return fmt.Errorf("read list of hot pages: %w", err)
	}
	list := make([]memory.HotPages, 0, len(b)/hotSize)
	for ; len(b) >= hotSize; b = b[hotSize:] {
		list = append(list, memory.HotPages{
			Task: binary.NativeEndian.Uint32(b), Words: binary.NativeEndian.Uint32(b[4:]),
			Addr: binary.NativeEndian.Uint64(b[8:]), Mask: binary.NativeEndian.Uint64(b[16:]),
		})
	}
	return e.Hot(list)
}
