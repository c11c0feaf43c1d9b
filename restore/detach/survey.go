package detach

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// object is a file of the old file system.
type object struct {
	ino   uint64
	mode  uint32
	size  int64
	path  string // for people, and of sockets the name of their node
	names uint64
	stays bool // a directory that is opened anew where it is (remote.go)
}

// description is an open file description that is replaced. All descriptors that share it share the new one.
type description struct {
	obj   object
	kind  kind
	info  fdInfo
	pid   int // who has it, under which number
	tid   int
	fd    int
	watch []watch     // inotify
	sock  *socketInfo // AF_UNIX
	file  *os.File    // the new one
}

type kind int

const (
	regular kind = iota // also what is opened by its path alone (O_PATH)
	directory
	device
	fifo
	inotify
	unixSocket
	stream // of this process's Streams
)

// descriptor is a number of a process.
type descriptor struct {
	fd      int
	cloexec bool
	desc    *description
}

// posixLock belongs to a process and a file; it is taken by any descriptor of the file.
type posixLock struct {
	fd int
	lk unix.Flock_t
}

// process is a process or thread with a descriptor table, directories or memory that no one before it shares.
type process struct {
	pid, tid       int
	hasFiles       bool
	hasFS          bool
	hasMM          bool
	fds            []descriptor
	locks          []posixLock
	epolls         []epollItem
	maps           []vma
	exe, cwd, root *object // nil: not on the old file system; root also where it is the tree's own
	numbers        []renumber
	p              *prepared
}

// survey is all that has to be moved.
type survey struct {
	dev       uint64
	root      uint64 // inode of the tree's root
	processes []*process
	descs     []*description
	byFile    map[descKey][]*description // those that may be the same
	epolls    []*epollSet
	stuck     []string
	streams   []Stream
	remote    []string          // Options.Remote
	connected int               // descriptors of sockets that keep a node of the old file system
	left      map[uint64]string // files in use that stay → path; empty: it has no name
}

type descKey struct {
	ino   uint64
	flags int
	pos   int64
	kind  kind
}

// Stuck says why a tree can't be moved: it runs as before.
type Stuck struct{ Reasons []string }

func (s *Stuck) Error() string {
	return "the tree can't leave its file system: " + strings.Join(s.Reasons, "; ")
}

func (s *survey) stick(format string, args ...any) {
	if r := fmt.Sprintf(format, args...); !slices.Contains(s.stuck, r) {
		s.stuck = append(s.stuck, r)
	}
}

// look surveys the tasks. In a tree that runs what comes and goes meanwhile is passed over.
func look(o *Options, tasks []*task, flags flagCache) (*survey, error) {
	s := &survey{dev: o.Dev, byFile: map[descKey][]*description{}, streams: o.Streams, remote: o.Remote, left: map[uint64]string{}}
	rootNS, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", o.MountNS))
	if err != nil {
		return nil, fmt.Errorf("find mount namespace of the tree: %w", err)
	}
	rootStat, err := Peek(fmt.Sprintf("/proc/%d/root", o.MountNS))
	if err != nil {
		return nil, fmt.Errorf("find root of the tree: %w", err)
	}
	s.root = rootStat.Ino
	leaders := map[int]*process{}
	for _, t := range tasks {
		if t.dead {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/task/%d/ns/mnt", t.pid, t.tid)); err == nil && ns != rootNS {
			s.stick("process %d has a mount namespace of its own", t.pid)
		}
		p, err := s.place(t, leaders[t.pid])
		if err != nil {
			return nil, fmt.Errorf("compare thread %d of process %d: %w", t.tid, t.pid, err)
		}
		if leaders[t.pid] == nil {
			leaders[t.pid] = p
		}
		if !p.hasFiles && !p.hasFS && !p.hasMM {
			continue
		}
		if err := s.lookAt(p, rootStat.Ino, flags); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("look at process %d: %w", p.pid, err)
		}
		s.processes = append(s.processes, p)
	}
	s.watched()
	return s, errors.Join(s.unpollable(), s.unreadable())
}

// place finds out what a task shares with those before it.
func (s *survey) place(t *task, leader *process) (*process, error) {
	p := &process{pid: t.pid, tid: t.tid, hasFiles: true, hasFS: true, hasMM: true}
	others := s.processes
	if leader != nil {
		p.hasMM = false
		others = []*process{leader}
	}
	for _, q := range others {
		for _, w := range []struct {
			kind int
			has  *bool
			of   bool
		}{{kcmpFiles, &p.hasFiles, q.hasFiles}, {kcmpFS, &p.hasFS, q.hasFS}, {kcmpVM, &p.hasMM, q.hasMM}} {
			if !*w.has || !w.of && leader == nil {
				continue
			}
			same, err := kcmp(t.tid, q.tid, w.kind, 0, 0)
			if errors.Is(err, unix.ESRCH) { // it has just ended
				same, err = true, nil
			}
			if err != nil {
				return nil, err
			}
			*w.has = !same
		}
	}
	return p, nil
}

func (p *process) proc(format string, args ...any) string {
	return fmt.Sprintf("/proc/%d/task/%d/", p.pid, p.tid) + fmt.Sprintf(format, args...)
}

func (s *survey) lookAt(p *process, rootIno uint64, flags flagCache) error {
	if p.hasFS {
		for _, w := range []struct {
			name string
			to   **object
		}{{"cwd", &p.cwd}, {"root", &p.root}} {
			obj, err := s.object(p.proc("%s", w.name))
			if err != nil {
				return err
			}
			*w.to = obj
		}
		if p.root != nil && p.root.ino == rootIno {
			p.root = nil // moves with the pivot
		}
		if p.root != nil && !capable(p.tid, unix.CAP_SYS_CHROOT) {
			s.stick("process %d has %s as its root and may not change that", p.pid, p.root.path)
		}
	}
	if p.hasMM {
		obj, err := s.object(p.proc("exe"))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		p.exe = obj
		if p.maps, err = mapsOf(p.tid, s.dev); err != nil {
			return err
		}
		if p.maps, err = s.mapsThatMove(p.tid, p.maps); err != nil {
			return err
		}
		if err := flags.fill(p, s.dev); err != nil {
			return err
		}
		for _, v := range p.maps {
			if strings.Contains(v.flags, " sl ") {
				s.stick("process %d has sealed a mapping of %s", p.pid, v.path)
			}
		}
	}
	if p.hasFiles {
		return s.lookAtFiles(p)
	}
	return nil
}

// object is what a link of /proc refers to, nil if it is not on the old file system, or stays there as it is.
func (s *survey) object(link string) (*object, error) {
	st, err := Peek(link)
	if err != nil {
		return nil, err
	}
	if st.Dev != s.dev {
		return nil, nil
	}
	path, err := os.Readlink(link)
	if err != nil {
		return nil, err
	}
	o := &object{ino: st.Ino, mode: st.Mode, size: st.Size, path: path, names: st.Nlink}
	if s.stays(path) && !s.leave(o) {
		return nil, nil
	}
	return o, nil
}

func capable(tid, c int) bool {
	v, err := strconv.ParseUint(statusOf(tid, "CapEff"), 16, 64)
	return err == nil && v&(1<<c) != 0
}

// inodes are those whose local files are needed.
func (s *survey) inodes() []uint64 {
	var all []uint64
	add := func(o *object) {
		if o != nil {
			all = append(all, o.ino)
		}
	}
	for _, p := range s.processes {
		add(p.exe)
		add(p.cwd)
		add(p.root)
		for _, v := range p.maps {
			all = append(all, v.ino)
		}
	}
	for _, d := range s.descs {
		if d.kind != inotify && d.kind != stream {
			all = append(all, d.obj.ino)
		}
		for _, w := range d.watch {
			all = append(all, w.ino)
		}
	}
	for ino := range s.left { // which should not be there
		all = append(all, ino)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// flagCache are VmFlags that were read while the tree ran.
type flagCache map[int]map[vmaKey]string

func (c flagCache) fill(p *process, dev uint64) error {
	missing := false
	for i := range p.maps {
		f, ok := c[p.pid][p.maps[i].key()]
		p.maps[i].flags = f
		missing = missing || !ok
	}
	if !missing {
		return nil
	}
	all, err := flagsOf(p.tid, dev)
	if err != nil {
		return err
	}
	c[p.pid] = all
	for i := range p.maps {
		p.maps[i].flags = all[p.maps[i].key()]
	}
	return nil
}
