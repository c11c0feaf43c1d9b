package images

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"
)

// AddSharedMemory makes the image of a shared memory whose mappings AddVMAs adds: it has no pages. CRIU makes the memory at the restore, in
// the first process that maps it, and fills nothing. pid is any process of the images, whose pages image CRIU opens and does not read.
func AddSharedMemory(dir string, object uint64, pid uint32) error {
	from := pidImage(dir, "pagemap", pid)
	var head pagemap.PagemapHead
	im, err := readOne(from, magicPagemap, &head)
	if err != nil {
		return err
	}
	to := filepath.Join(dir, fmt.Sprintf("pagemap-shmem-%d.img", object))
	if _, err := os.Lstat(to); !os.IsNotExist(err) {
		return fmt.Errorf("add shared memory: image %s: %w", to, fs.ErrExist)
	}
	b, err := proto.Marshal(&pagemap.PagemapHead{PagesId: head.PagesId})
	if err != nil {
		return fmt.Errorf("add shared memory: %w", err)
	}
	return (&image{head: im.head, magic: im.magic, entries: [][]byte{b}}).write(to)
}
