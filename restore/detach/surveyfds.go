package detach

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

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
		case s.stream(name) >= 0:
			err = s.lookAtStream(d, name)
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
	case unix.S_IFIFO:
		d.kind = fifo
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
