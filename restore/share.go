package restore

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/restore/memory"
)

// share takes hold of the shared memory that CRIU has made, empty, and has its pages come lazily, too. The tree is held.
func (r *restoring) share() error {
	engine := r.g.hub.getEngine()
	where, err := r.sharers()
	if err != nil {
		return err
	}
	for _, t := range r.cfg.Tasks {
		if !memory.IsObject(t.ID) {
			continue
		}
		path := where[t.ID]
		if path == "" {
			return fmt.Errorf("shared memory %#x is mapped in no task", t.ID)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("open shared memory: %w", err)
		}
		err = engine.Share(t.ID, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	for _, t := range r.cfg.Tasks {
		if len(t.Shared) > 0 {
			if err := engine.Join(t.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// sharers checks that each shared range of a task shows what it ought to, and says where each object can be opened.
func (r *restoring) sharers() (where map[uint32]string, err error) {
	where = map[uint32]string{}
	files := map[uint32]string{} // device and inode of an object
	for _, t := range r.cfg.Tasks {
		if len(t.Shared) == 0 {
			continue
		}
		maps, err := readMaps(int(t.ID))
		if err != nil {
			return nil, err
		}
		for _, s := range t.Shared {
			m := maps.at(s.Start)
			if m == nil || m.end < s.End || m.offset+s.Start-m.start != s.Offset {
				return nil, fmt.Errorf("task %d: shared memory %#x is not restored at %#x-%#x: %w", t.ID, s.Object, s.Start, s.End, unix.ENOENT)
			}
			if file, known := files[s.Object]; known && file != m.file {
				return nil, fmt.Errorf("task %d: shared memory %#x is another one at %#x than elsewhere: %w", t.ID, s.Object, s.Start, unix.EXDEV)
			}
			files[s.Object] = m.file
			where[s.Object] = fmt.Sprintf("/proc/%d/map_files/%x-%x", t.ID, m.start, m.end)
		}
	}
	return where, nil
}

// fileMap is a shared mapping of a file.
type fileMap struct {
	start, end, offset uint64
	file               string // device and inode
}

type fileMaps []fileMap

func (l fileMaps) at(addr uint64) *fileMap {
	for i := range l {
		if l[i].start <= addr && addr < l[i].end {
			return &l[i]
		}
	}
	return nil
}

// readMaps lists the shared mappings of a process.
func readMaps(pid int) (list fileMaps, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, fmt.Errorf("look for shared memory of task %d: %w", pid, err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() { // START-END perms OFFSET MAJOR:MINOR INODE path
		w := strings.Fields(s.Text())
		if len(w) < 5 || !strings.HasSuffix(w[1], "s") {
			continue
		}
		m := fileMap{file: w[3] + " " + w[4]}
		if n, _ := fmt.Sscanf(w[0]+" "+w[2], "%x-%x %x", &m.start, &m.end, &m.offset); n == 3 {
			list = append(list, m)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("look for shared memory of task %d: %w", pid, err)
	}
	return list, nil
}

// quiesce stops the tree's threads where they run, and lets them go on.
func (g *guardian) quiesce(stop bool) error {
	v := "0"
	if stop {
		v = "1"
	}
	return writeIn(g.group, "cgroup.freeze", v)
}
