package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"google.golang.org/protobuf/proto"
)

// Memfd is memory that a process made by memfd_create, and that is mapped and not open any more.
type Memfd struct {
	Inode    uint64
	Name     string
	UID, GID uint32
	Mode     uint32
	Size     uint64
	Seals    uint32
}

// AddMemfd adds a memfd whose image of pages AddSharedMemory has made, and returns its number among the files, which is that of its mappings'
// object. CRIU makes it at the restore as it makes every other, and finds nothing to fill it with.
func AddMemfd(dir string, m Memfd) (uint32, error) {
	if m.Inode>>32 != 0 {
		return 0, fmt.Errorf("add memfd: inode %d: %w", m.Inode, ErrFormat)
	}
	filesPath, path := filepath.Join(dir, "files.img"), filepath.Join(dir, "memfd.img")
	files, err := readImage(filesPath, magicFiles)
	if err != nil {
		return 0, err
	}
	memfds, err := readImage(path, magicMemfd)
	if errors.Is(err, fs.ErrNotExist) {
		memfds, err = newImage(magicMemfd), nil
	}
	if err != nil {
		return 0, err
	}
	var id uint32
	var inode uint64
	for _, b := range files.entries {
		var e fdinfo.FileEntry
		if err := proto.Unmarshal(b, &e); err != nil {
			return 0, fmt.Errorf("read image %s: %w: %w", filesPath, ErrFormat, err)
		}
		id = max(id, e.GetId())
	}
	for _, b := range memfds.entries {
		var e memfd.MemfdInodeEntry
		if err := proto.Unmarshal(b, &e); err != nil {
			return 0, fmt.Errorf("read image %s: %w: %w", path, ErrFormat, err)
		}
		inode = max(inode, e.GetInodeId())
	}
	id++
	inode++
	none := new(uint32(0))
	mb, err := proto.Marshal(&memfd.MemfdInodeEntry{
		Name: new(m.Name), Uid: new(m.UID), Gid: new(m.GID), Mode: new(m.Mode), Size: new(m.Size), Shmid: new(uint32(m.Inode)), Seals: new(m.Seals), InodeId: new(inode),
	})
	if err != nil {
		return 0, fmt.Errorf("add memfd: %w", err)
	}
	fb, err := proto.Marshal(&fdinfo.FileEntry{
		Type: fdinfo.FdTypes_MEMFD.Enum(), Id: new(id),
		Memfd: &memfd.MemfdFileEntry{
			Id: new(id), Flags: new(uint32(os.O_RDWR)), Pos: new(uint64(0)), InodeId: new(uint32(inode)),
			Fown: &fown.FownEntry{Uid: none, Euid: none, Signum: none, PidType: none, Pid: none},
		},
	})
	if err != nil {
		return 0, fmt.Errorf("add memfd: %w", err)
	}
	memfds.entries, files.entries = append(memfds.entries, mb), append(files.entries, fb)
	if err := memfds.write(path); err != nil {
		return 0, err
	}
	return id, files.write(filesPath)
}
