package images

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fifo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"google.golang.org/protobuf/proto"
)

// put writes an image of the given entries.
func put(t *testing.T, path string, magic uint32, entries ...proto.Message) {
	t.Helper()
	im := &image{head: binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, magicCommon), magic)}
	for _, e := range entries {
		b, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		im.entries = append(im.entries, b)
	}
	if err := im.write(path); err != nil {
		t.Fatal(err)
	}
}

func fifoFile(id, inode, reg uint32) *fdinfo.FileEntry {
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_FIFO.Enum(), Id: &id, Fifo: &fifo.FifoEntry{Id: &id, PipeId: &inode, RegfId: &reg}}
}

func regFile(id, flags uint32, name string) *fdinfo.FileEntry {
	own := &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
	return &fdinfo.FileEntry{
		Type: fdinfo.FdTypes_REG.Enum(), Id: &id,
		Reg: &regfile.RegFileEntry{Id: &id, Flags: &flags, Pos: proto.Uint64(0), Fown: own, Name: &name},
	}
}

// TestFifosToPipes changes the FIFOs that are asked for, with all their descriptors, and nothing else.
func TestFifosToPipes(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "files.img"), magicFiles, regFile(10, 1, "a"), fifoFile(1, 77, 10), regFile(11, 0, "b"), fifoFile(2, 78, 11))
	fd := func(id, n uint32) *fdinfo.FdinfoEntry {
		return &fdinfo.FdinfoEntry{Id: &id, Flags: proto.Uint32(0), Type: fdinfo.FdTypes_FIFO.Enum(), Fd: &n}
	}
	table := filepath.Join(dir, "fdinfo-2.img")
	put(t, table, magicFdinfo, fd(1, 1), fd(2, 0), fd(1, 5))
	if err := FifosToPipes(dir, map[uint32]uint32{77: 4000, 79: 4001}); err != nil {
		t.Fatal(err)
	}
	files, err := readFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	if p := files[1].GetPipe(); files[1].GetType() != fdinfo.FdTypes_PIPE || files[1].GetFifo() != nil || p.GetId() != 1 || p.GetPipeId() != 4000 || p.GetFlags() != 1 {
		t.Errorf("file 1 is %v", files[1])
	}
	if files[3].GetType() != fdinfo.FdTypes_FIFO || files[3].GetFifo().GetPipeId() != 78 {
		t.Errorf("file 2 is %v", files[3])
	}
	im, err := readImage(table, magicFdinfo)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []fdinfo.FdTypes{fdinfo.FdTypes_PIPE, fdinfo.FdTypes_FIFO, fdinfo.FdTypes_PIPE} {
		var e fdinfo.FdinfoEntry
		if err := proto.Unmarshal(im.entries[i], &e); err != nil || e.GetType() != want {
			t.Errorf("descriptor %d is %v, %v", i, e.GetType(), err)
		}
	}
}

// TestFifosAlike: FIFOs that can't be told apart, or are not whole, are refused, and nothing is changed.
func TestFifosAlike(t *testing.T) {
	for name, files := range map[string][]proto.Message{
		"alike":   {regFile(10, 1, "a"), fifoFile(1, 77, 10), regFile(11, 0, "b"), fifoFile(2, 77, 11)},
		"no file": {fifoFile(1, 77, 10)},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "files.img")
		put(t, path, magicFiles, files...)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := FifosToPipes(dir, map[uint32]uint32{77: 4000}); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
			t.Errorf("%s: the image is changed (%v)", name, err)
		}
	}
}
