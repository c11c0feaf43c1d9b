package images

import (
	"cmp"
	"fmt"
	"os"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/proto"
)

// VmaEntry.status (criu/include/image.h).
const (
	StatusRegular     = 1 << 0
	StatusVsyscall    = 1 << 2
	StatusVDSO        = 1 << 3
	StatusHeap        = 1 << 5
	StatusAnonShared  = 1 << 8
	StatusAnonPrivate = 1 << 9
	StatusVVAR        = 1 << 12
	StatusMemfd       = 1<<14 | 1<<7 // a memfd, mapped as a shared file
	StatusGuard       = 1 << 16
)

// VmaEntry.flags: the kernel's MAP_* of x86-64, and one of CRIU's status.
const (
	MapShared    = 0x01
	MapPrivate   = 0x02
	MapAnonymous = 0x20
	MapLocked    = 0x2000
	MapNoReserve = 0x4000
	MapHugeTLB   = 0x40000
)

const (
	pageSize = 4096
	// taskSize is the highest address of a task with four page-table levels and one with five: 2^56.
	taskSize = 1 << 56
	maxVMAs  = 1 << 20
)

// VMA is one mapping: a VmaEntry of an mm image.
type VMA struct {
	Start, End uint64
	Prot       uint32 // PROT_*
	Flags      uint32 // MAP_*
	Status     uint32 // Status*
	Madv       uint64 // bit n: MADV_ number n

	Object uint64 // number of the shared memory that it shows, or of the memfd among the files; 0: private
	Offset uint64 // in that
}

// Lazy says whether `criu restore --lazy-pages` registers the VMA with its userfaultfd.
func (v VMA) Lazy() bool {
	return v.Flags&MapAnonymous != 0 && v.Flags&MapPrivate != 0 && v.Flags&(MapLocked|MapHugeTLB) == 0 &&
		v.Status&(StatusVDSO|StatusVVAR|StatusVsyscall|StatusGuard) == 0
}

// AddVMAs puts VMAs of memory that were hidden from CRIU into the mm image of pid, in order of address and
// before the entries for guard pages, which CRIU keeps at the end. A VMA that overlaps one which is there is an error.
func AddVMAs(dir string, pid uint32, vmas []VMA) error {
	if len(vmas) == 0 {
		return nil
	}
	path := pidImage(dir, "mm", pid)
	var m mm.MmEntry
	im, err := readOne(path, magicMM, &m)
	if err != nil {
		return err
	}
	for _, v := range vmas {
		e := &vma.VmaEntry{
			Start: new(v.Start), End: new(v.End), Pgoff: new(v.Offset), Shmid: new(v.Object),
			Prot: new(v.Prot), Flags: new(v.Flags), Status: new(v.Status), Fd: new(int64(-1)),
		}
		if v.Madv != 0 {
			e.Madv = new(v.Madv)
		}
		if v.Status&StatusMemfd != 0 {
			e.Fdflags = new(uint32(os.O_RDWR))
		}
		m.Vmas = append(m.Vmas, e)
	}
	slices.SortStableFunc(m.Vmas, func(a, b *vma.VmaEntry) int {
		return cmp.Or(cmp.Compare(a.GetStatus()&StatusGuard, b.GetStatus()&StatusGuard), cmp.Compare(a.GetStart(), b.GetStart()))
	})
	if err := checkVMAs(m.Vmas); err != nil {
		return fmt.Errorf("add VMAs to %s: %w", path, err)
	}
	if im.entries[0], err = proto.Marshal(&m); err != nil {
		return fmt.Errorf("add VMAs to %s: %w", path, err)
	}
	return im.write(path)
}

// VMAs lists the mappings of pid as its mm image has them.
func VMAs(dir string, pid uint32) ([]VMA, error) {
	var m mm.MmEntry
	if _, err := readOne(pidImage(dir, "mm", pid), magicMM, &m); err != nil {
		return nil, err
	}
	list := make([]VMA, 0, len(m.GetVmas()))
	for _, e := range m.GetVmas() {
		v := VMA{Start: e.GetStart(), End: e.GetEnd(), Prot: e.GetProt(), Flags: e.GetFlags(), Status: e.GetStatus(), Madv: e.GetMadv()}
		if v.Status&StatusAnonShared != 0 || v.Status&StatusMemfd == StatusMemfd {
			v.Object, v.Offset = e.GetShmid(), e.GetPgoff()
		}
		list = append(list, v)
	}
	return list, nil
}

func checkVMAs(vmas []*vma.VmaEntry) error {
	if len(vmas) > maxVMAs {
		return fmt.Errorf("%d VMAs: %w", len(vmas), ErrFormat)
	}
	var end, guardEnd uint64
	guards := false
	for _, v := range vmas {
		if v.GetStatus()&StatusVsyscall != 0 { // above everything, not in the task's own range
			continue
		}
		if v.GetStart() >= v.GetEnd() || v.GetStart()%pageSize != 0 || v.GetEnd()%pageSize != 0 || v.GetEnd() > taskSize {
			return fmt.Errorf("VMA %#x-%#x: %w", v.GetStart(), v.GetEnd(), ErrFormat)
		}
		last := &end
		if v.GetStatus()&StatusGuard != 0 {
			guards, last = true, &guardEnd
		} else if guards {
			return fmt.Errorf("VMA %#x-%#x follows guard pages: %w", v.GetStart(), v.GetEnd(), ErrFormat)
		}
		if v.GetStart() < *last {
			return fmt.Errorf("VMA %#x-%#x overlaps the one before: %w", v.GetStart(), v.GetEnd(), ErrFormat)
		}
		*last = v.GetEnd()
	}
	return nil
}
