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
	ino  uint64
	mode uint32
	size int64
	path string // for people, and of sockets the name of their node
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
	inotify
	unixSocket
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
	s := &survey{dev: o.Dev, byFile: map[descKey][]*description{}}
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
	return s, nil
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

// object is what a link of /proc refers to, nil if it is not on the old file system.
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
	return &object{ino: st.Ino, mode: st.Mode, size: st.Size, path: path}, nil
}

func capable(tid, c int) bool {
	v, err := strconv.ParseUint(statusOf(tid, "CapEff"), 16, 64)
	return err == nil && v&(1<<c) != 0
}

func (s *survey) lookAtFiles(p *process) error {
	fds, err := numbers(p.proc("fd"))
	if err != nil {
		return err
	}
	slices.Sort(fds)
	pidfd := -1
	defer func() {
		if pidfd >= 0 {
			unix.Close(pidfd)
		}
	}()
	for _, fd := range fds {
		link := p.proc("fd/%d", fd)
		name, err := os.Readlink(link)
		if err != nil {
			continue // closed meanwhile
		}
		d := &description{pid: p.pid, tid: p.tid, fd: fd}
		switch {
		case strings.HasPrefix(name, "/"):
			err = s.lookAtFile(d, link)
		case name == "anon_inode:inotify":
			d.kind = inotify
			err = s.lookAtWatches(d)
		case name == "anon_inode:[fanotify]":
			s.stick("process %d has a fanotify descriptor (%d), which can't be moved", p.pid, fd)
			continue
		case strings.HasPrefix(name, "socket:"):
			if pidfd < 0 {
				if pidfd, err = unix.PidfdOpen(p.pid, 0); err != nil {
					return err
				}
			}
			err = s.lookAtSocket(d, pidfd)
		case name == "anon_inode:[eventpoll]":
			if err := s.lookAtEpoll(p, fd); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			continue
		default:
			continue
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBADF) {
			continue
		}
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
		if d.obj.ino == 0 {
			continue // it has nothing to do with the old file system
		}
		if err := s.add(p, d); err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return nil
}

func (s *survey) lookAtFile(d *description, link string) error {
	obj, err := s.object(link)
	if err != nil || obj == nil {
		return err
	}
	if d.info, err = readFDInfo(d.tid, d.fd); err != nil {
		return err
	}
	d.obj = *obj
	what := fmt.Sprintf("process %d has %s open (descriptor %d)", d.pid, obj.path, d.fd)
	if d.info.lease {
		s.stick("%s with a lease", what)
	}
	if d.info.flags&unix.O_PATH != 0 {
		return nil
	}
	switch obj.mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		d.kind = directory
		if d.info.pos != 0 {
			s.stick("%s and has read a part of that directory", what)
		}
	case unix.S_IFCHR:
		d.kind = device
		st, err := Peek(link)
		if err != nil {
			return err
		}
		if unix.Major(st.Rdev) != 1 { // null, zero, random …: any other may have a state
			s.stick("%s, a device", what)
		}
	default:
		s.stick("%s, which is neither file nor directory", what)
	}
	return nil
}

// add finds out whether the description is one that has been seen, and adds the descriptor.
func (s *survey) add(p *process, d *description) error {
	k := descKey{d.obj.ino, d.info.flags &^ unix.O_CLOEXEC, d.info.pos, d.kind}
	cloexec := d.info.flags&unix.O_CLOEXEC != 0
	for _, l := range d.info.locks {
		if l.kind == "POSIX" && !slices.Contains(p.locks, posixLock{d.fd, l.lk}) {
			p.addLock(d, l.lk)
		}
	}
	for _, q := range s.byFile[k] {
		same, err := kcmp(p.tid, q.tid, kcmpFile, uint64(d.fd), uint64(q.fd))
		if err != nil && !errors.Is(err, unix.EBADF) && !errors.Is(err, unix.ESRCH) {
			return err
		}
		if same && err == nil {
			p.fds = append(p.fds, descriptor{d.fd, cloexec, q})
			return nil
		}
	}
	s.byFile[k] = append(s.byFile[k], d)
	s.descs = append(s.descs, d)
	p.fds = append(p.fds, descriptor{d.fd, cloexec, d})
	return nil
}

// addLock adds a POSIX lock, which every descriptor of its file shows.
func (p *process) addLock(d *description, lk unix.Flock_t) {
	for _, o := range p.fds {
		if o.desc.obj.ino == d.obj.ino && slices.Contains(p.locks, posixLock{o.fd, lk}) {
			return
		}
	}
	p.locks = append(p.locks, posixLock{d.fd, lk})
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
		if d.kind != inotify {
			all = append(all, d.obj.ino)
		}
		for _, w := range d.watch {
			all = append(all, w.ino)
		}
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
