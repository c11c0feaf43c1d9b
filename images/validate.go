package images

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"
)

// nameRE is what CRIU 4.2 calls its image files: kind, perhaps an ID or two, .img; and its statistics.
var nameRE = regexp.MustCompile(`^([a-z0-9]+(-[a-z0-9]+)*\.img|stats-dump|stats-restore)$`)

const maxFiles = 1 << 20

// ValidName says whether name may be an image file's: a plain name, as CRIU gives them.
func ValidName(name string) bool { return len(name) < 128 && nameRE.MatchString(name) }

// Validate checks images that came from a peer before CRIU and this program use them: plain files with CRIU's names,
// whole entries, a tree of tasks, mappings in order, and pages that lie in mappings and in their pages image.
func Validate(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("validate images: %w", err)
	}
	if len(list) > maxFiles {
		return fmt.Errorf("validate images: %d files: %w", len(list), ErrFormat)
	}
	for _, d := range list {
		if d.IsDir() && !ValidName(d.Name()) {
			continue // the host's own: a peer can't make any, and CRIU does not look into them
		}
		if !ValidName(d.Name()) || !d.Type().IsRegular() {
			return fmt.Errorf("validate images: file %q: %w", d.Name(), ErrFormat)
		}
	}
	if _, err := readImage(filepath.Join(dir, "inventory.img"), magicInventory); err != nil {
		return fmt.Errorf("validate images: %w", err)
	}
	if _, err := readFiles(dir); err != nil {
		return fmt.Errorf("validate images: %w", err)
	}
	if _, err := LinkRemaps(dir); err != nil {
		return fmt.Errorf("validate images: %w", err)
	}
	tasks, err := Tasks(dir)
	if err != nil {
		return fmt.Errorf("validate images: %w", err)
	}
	for _, t := range tasks {
		if err := validateTask(dir, t); err != nil {
			return fmt.Errorf("validate images: task %d: %w", t.PID, err)
		}
	}
	return nil
}

func validateTask(dir string, t Task) error {
	if t.Zombie {
		return nil
	}
	for _, tid := range t.Threads {
		if _, err := ReadThread(dir, tid); err != nil {
			return err
		}
	}
	var m mm.MmEntry
	if _, err := readOne(pidImage(dir, "mm", t.PID), magicMM, &m); err != nil {
		return err
	}
	if err := checkVMAs(m.GetVmas()); err != nil {
		return err
	}
	return validatePagemap(dir, t.PID, &m)
}

func validatePagemap(dir string, pid uint32, m *mm.MmEntry) error {
	path := pidImage(dir, "pagemap", pid)
	var head pagemap.PagemapHead
	im, err := readOne(path, magicPagemap, &head)
	if err != nil {
		return err
	}
	var stored, end uint64
	i := 0
	for _, b := range im.entries[1:] {
		var e pagemap.PagemapEntry
		if err := proto.Unmarshal(b, &e); err != nil {
			return fmt.Errorf("read image %s: %w: %w", path, ErrFormat, err)
		}
		start, n := e.GetVaddr(), pages(&e)
		if n == 0 || n > taskSize/pageSize || start%pageSize != 0 || start < end || start+n*pageSize > taskSize {
			return fmt.Errorf("image %s: %d pages at %#x: %w", path, n, start, ErrFormat)
		}
		end = start + n*pageSize
		for at := start; at < end; { // an entry may run over adjacent VMAs
			for i < len(m.GetVmas()) && m.GetVmas()[i].GetEnd() <= at {
				i++
			}
			if i == len(m.GetVmas()) || m.GetVmas()[i].GetStart() > at {
				return fmt.Errorf("image %s: pages at %#x outside every VMA: %w", path, at, ErrFormat)
			}
			at = m.GetVmas()[i].GetEnd()
		}
		const inParent, present = 1 << 0, 1 << 2
		if e.GetFlags()&inParent != 0 || e.GetInParent() {
			return fmt.Errorf("image %s: pages in a parent's images: %w", path, ErrFormat)
		}
		if e.GetFlags()&present != 0 {
			stored += n * pageSize
		}
	}
	if stored == 0 {
		return nil
	}
	fi, err := os.Lstat(pidImage(dir, "pages", head.GetPagesId()))
	if err != nil {
		return fmt.Errorf("image %s: %w", path, err)
	}
	if uint64(fi.Size()) < stored {
		return fmt.Errorf("image %s: %d bytes of pages where %d are stored: %w", path, fi.Size(), stored, ErrFormat)
	}
	return nil
}

// pages is the length of an entry; before CRIU 4.2 it stood in another field.
func pages(e *pagemap.PagemapEntry) uint64 {
	if e.NrPages != nil {
		return e.GetNrPages()
	}
	return uint64(e.GetCompatNrPages())
}
