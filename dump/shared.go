package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/internal/pagemap"
)

// leastShared is the size from which shared memory is hidden: less is copied faster than it is made anew.
const leastShared = 1 << 20

// objects are the shared memories that CRIU is not shown, by inode number: all are of the kernel's own tmpfs.
type objects map[uint64]*Object

func (o objects) hides(m *mapping) bool {
	if m.private {
		return m.hidable()
	}
	return m.ofKernel() && o[m.inode] != nil
}

// kernelTmpfs is the device number of the mount that nobody sees, as maps shows it: anonymous shared memory, memfds and SysV segments
// lie there.
var kernelTmpfs = sync.OnceValue(func() string {
	fd, err := unix.MemfdCreate("lazymig", unix.MFD_CLOEXEC)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return ""
	}
	return fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev))
})

func (m *mapping) ofKernel() bool { return !m.private && m.dev == kernelTmpfs() }

// CRIU restores anonymous shared memory as a memfd without a name.
const (
	anonymousName = "/dev/zero (deleted)"
	restoredName  = "/memfd: (deleted)"
)

// memfdName is the name that a process gave to memory that it made by memfd_create.
func (m *mapping) memfdName() (string, bool) {
	name, is := strings.CutPrefix(m.name, "/memfd:")
	return strings.TrimSuffix(name, " (deleted)"), is
}

// shareable says whether the mapping does not keep its shared memory from being hidden. A mapping that may never be written can't be
// registered with a userfaultfd.
func (m *mapping) shareable() bool {
	_, memfd := m.memfdName()
	return m.ofKernel() && (m.name == anonymousName || memfd) && m.has("mw") && !m.guarded && !m.fixed()
}

// findGuards looks for guard pages in shared mappings: they belong to one process, and CRIU sees them only in what it is shown.
func (s *snapshot) findGuards(pid int) error {
	if !pagemap.Probe().Guard {
		return nil
	}
	var f *os.File
	for i := range s.mappings {
		m := &s.mappings[i]
		if !m.shareable() || m.end-m.start < leastShared {
			continue
		}
		if f == nil {
			var err error
			if f, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", pid)); err != nil {
				return fmt.Errorf("look for guards of process %d: %w", pid, err)
			}
			defer f.Close()
		}
		n, _, err := pagemap.FD(f.Fd()).Scan(m.start, m.end, pagemap.Query{Any: pagemap.Guard, Return: pagemap.Guard}, make([]pagemap.Region, 1))
		if err != nil {
			return fmt.Errorf("look for guards of process %d in %#x-%#x: %w", pid, m.start, m.end, err)
		}
		m.guarded = n > 0
	}
	return nil
}

// findObjects decides which shared memory CRIU is not shown: what is large enough, and can be restored lazily in every process that maps it.
func (d *Dump) findObjects(r *Result) error {
	found, eager := objects{}, map[uint64]string{}
	names := false
	for _, p := range d.procs {
		s := d.snaps[p.pid]
		if s == nil {
			continue
		}
		for i := range s.mappings {
			m := &s.mappings[i]
			if m.private && m.inode != 0 && m.dev == kernelTmpfs() {
				eager[m.inode] = fmt.Sprintf("process %d has mapped %s at %#x privately, too", p.pid, m.name, m.start)
			}
			if !m.ofKernel() {
				continue
			}
			o := found[m.inode]
			if o == nil {
				o = &Object{Inode: m.inode, PID: p.pid, Start: m.start, End: m.end}
				found[m.inode] = o
			}
			o.Size = max(o.Size, m.offset+m.end-m.start)
			if name, memfd := m.memfdName(); memfd {
				o.name, names = name, true
			}
			if !m.shareable() {
				eager[m.inode] = fmt.Sprintf("process %d has mapped %s at %#x with flags %v", p.pid, m.name, m.start, m.flags)
			}
		}
	}
	if d.o.EagerShared || d.o.Unhidden {
		for ino := range found {
			eager[ino] = "the target can't take shared memory lazily"
		}
	} else if names {
		if err := d.findOpen(found, eager); err != nil {
			return err
		}
	}
	for ino, o := range found {
		if o.name != "" && o.Size >= leastShared && eager[ino] == "" {
			why, err := o.measure()
			if err != nil {
				return err
			}
			if why != "" {
				eager[ino] = why
			}
		}
		if o.Size < leastShared {
			delete(found, ino)
		} else if why := eager[ino]; why != "" {
			r.Eager = append(r.Eager, fmt.Sprintf("%d MB of shared memory: %s", o.Size>>20, why))
			delete(found, ino)
		}
	}
	slices.Sort(r.Eager)
	d.objects = found
	return nil
}

// measure takes down what makes a memfd that one, and its whole size; or it says why the guardian could not map all of it for writing.
func (o *Object) measure() (why string, err error) {
	f, err := o.Open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("look at shared memory of process %d: %w", o.PID, err)
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return "", fmt.Errorf("look at the seals of shared memory of process %d: %w", o.PID, err)
	}
	size := uint64(st.Size)
	switch {
	case size < o.Size || size%pageSize != 0:
		return fmt.Sprintf("process %d has mapped memfd %s behind its end", o.PID, o.name), nil
	case seals&(unix.F_SEAL_WRITE|unix.F_SEAL_FUTURE_WRITE) != 0:
		return fmt.Sprintf("memfd %s of process %d is sealed against writing", o.name, o.PID), nil
	}
	o.Size = size
	o.memfd = images.Memfd{Inode: o.Inode, Name: o.name, UID: st.Uid, GID: st.Gid, Mode: st.Mode &^ unix.S_IFMT, Size: size, Seals: uint32(seals)}
	return "", nil
}

// findOpen finds memory that a process of the tree can reach by a descriptor, too.
func (d *Dump) findOpen(found objects, eager map[uint64]string) error {
	for _, p := range d.procs {
		dir := fmt.Sprintf("/proc/%d/fd", p.pid)
		fds, err := os.ReadDir(dir)
		if err != nil && !p.zombie {
			return fmt.Errorf("look for descriptors of shared memory: %w", err)
		}
		for _, f := range fds {
			path := dir + "/" + f.Name()
			name, err := os.Readlink(path)
			if err != nil || !strings.HasPrefix(name, "/memfd:") && name != anonymousName {
				continue
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				return fmt.Errorf("look at descriptor %s of process %d: %w", f.Name(), p.pid, err)
			}
			if found[st.Ino] != nil {
				eager[st.Ino] = fmt.Sprintf("process %d has it open as descriptor %s", p.pid, f.Name())
			}
		}
	}
	return nil
}

// addObjects puts the objects into the images, and what shows them into the result; before their mappings. pid is a process of the images.
func (d *Dump) addObjects(r *Result, pid uint32) error {
	inodes := make([]uint64, 0, len(d.objects))
	for ino := range d.objects {
		inodes = append(inodes, ino)
	}
	slices.Sort(inodes)
	for i, ino := range inodes {
		o := d.objects[ino]
		o.ID = ObjectBit | uint32(i)
		f, err := o.Open()
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		f.Close()
		if err != nil {
			return fmt.Errorf("look at shared memory of process %d: %w", o.PID, err)
		}
		o.Bytes = uint64(st.Blocks) * 512
		if err := images.AddSharedMemory(d.images, ino, pid); errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("shared memory of process %d was being sent to another process as a descriptor: %w", o.PID, ErrChanged)
		} else if err != nil {
			return err
		}
		if o.name != "" {
			if o.file, err = images.AddMemfd(d.images, o.memfd); err != nil {
				return err
			}
		}
		r.Objects = append(r.Objects, *o)
		r.MemoryBytes += o.Bytes
	}
	return nil
}

// Open opens the memory itself. It lives on, then, when its processes have ended.
func (o *Object) Open() (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/map_files/%x-%x", o.PID, o.Start, o.End))
	if err != nil {
		return nil, fmt.Errorf("open shared memory of process %d: %w", o.PID, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != o.Inode || fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev)) != kernelTmpfs() {
		f.Close()
		return nil, fmt.Errorf("open shared memory of process %d at %#x: it is another one: %w", o.PID, o.Start, ErrChanged)
	}
	return f, nil
}

// shared lists the mappings of objects.
func (s *snapshot) shared(objects objects) []SharedRange {
	var list []SharedRange
	for i := range s.mappings {
		if m := &s.mappings[i]; m.ofKernel() && objects[m.inode] != nil {
			list = append(list, SharedRange{Start: m.start, End: m.end, Offset: m.offset, Object: objects[m.inode].ID})
		}
	}
	return list
}

// lazy are all ranges whose pages come after the restore, in order of address.
func (t *Task) lazy() []Region {
	list := slices.Clone(t.Regions)
	for _, s := range t.Shared {
		list = append(list, Region{Start: s.Start, End: s.End})
	}
	slices.SortFunc(list, func(a, b Region) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	return list
}
