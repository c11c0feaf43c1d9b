package images

import (
	"fmt"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	"google.golang.org/protobuf/proto"
)

const magicFdinfo = 0x56213732

// FifosToPipes turns open FIFOs into pipes: CRIU opens a FIFO by its name, but lets a pipe be inherited. pipes has the pipe's number by
// the FIFO's inode number. A FIFO that is not open any more is left out; two with one number (of two file systems) are an error.
func FifosToPipes(dir string, pipes map[uint32]uint32) error {
	path := filepath.Join(dir, "files.img")
	im, err := readImage(path, magicFiles)
	if err != nil {
		return err
	}
	files, err := readFiles(dir)
	if err != nil {
		return err
	}
	byID := map[uint32]*fdinfo.FileEntry{}
	for _, e := range files {
		byID[e.GetId()] = e
	}
	changed := map[uint32]bool{}
	names := map[uint32]string{}
	for i, e := range files {
		f := e.GetFifo()
		id, wanted := pipes[f.GetPipeId()]
		if f == nil || !wanted {
			continue
		}
		reg := byID[f.GetRegfId()].GetReg()
		if reg == nil {
			return fmt.Errorf("change image %s: FIFO %d has no file: %w", path, f.GetPipeId(), ErrFormat)
		}
		if n, ok := names[id]; ok && n != reg.GetName() {
			return fmt.Errorf("change image %s: FIFOs %q and %q have one inode number: %w", path, n, reg.GetName(), ErrFormat)
		}
		names[id] = reg.GetName()
		e.Type, e.Fifo = fdinfo.FdTypes_PIPE.Enum(), nil
		e.Pipe = &pipe.PipeEntry{Id: e.Id, PipeId: new(id), Flags: reg.Flags, Fown: reg.Fown}
		if im.entries[i], err = proto.Marshal(e); err != nil {
			return fmt.Errorf("change image %s: %w", path, err)
		}
		changed[e.GetId()] = true
	}
	if len(changed) == 0 {
		return nil
	}
	if err := im.write(path); err != nil {
		return err
	}
	tables, err := filepath.Glob(filepath.Join(dir, "fdinfo-*.img"))
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, t := range tables {
		if err := retype(t, changed); err != nil {
			return err
		}
	}
	return nil
}

// retype makes descriptors of changed files those of pipes.
func retype(path string, changed map[uint32]bool) error {
	im, err := readImage(path, magicFdinfo)
	if err != nil {
		return err
	}
	for i, b := range im.entries {
		var e fdinfo.FdinfoEntry
		if err := proto.Unmarshal(b, &e); err != nil {
			return fmt.Errorf("read image %s: %w: %w", path, ErrFormat, err)
		}
		if !changed[e.GetId()] {
			continue
		}
		e.Type = fdinfo.FdTypes_PIPE.Enum()
		if im.entries[i], err = proto.Marshal(&e); err != nil {
			return fmt.Errorf("change image %s: %w", path, err)
		}
	}
	return im.write(path)
}
