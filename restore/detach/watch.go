package detach

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// watch is one of an inotify instance.
type watch struct {
	wd   int
	ino  uint64
	mask uint32
}

// What the kernel adds to a mask or an event (include/uapi/linux/inotify.h).
const notAsked = unix.IN_IGNORED | unix.IN_Q_OVERFLOW | unix.IN_UNMOUNT | unix.IN_ISDIR

// lookAtWatches takes an instance that watches something on the old file system. The number of a watch can't be chosen, but a fresh
// instance counts from 1, so a fresh one replaces it; its queue has to be empty.
func (s *survey) lookAtWatches(d *description) error {
	var err error
	if d.info, err = readFDInfo(d.tid, d.fd); err != nil {
		return err
	}
	ours, others := 0, 0
	for _, line := range d.info.lines {
		var w watch
		var sdev uint64
		// "inotify wd:1 ino:9e7e sdev:800013 mask:800afce …", in hex but for wd; sdev is the kernel's own dev_t: 20 bits of minor
		if _, err := fmt.Sscanf(line, "inotify wd:%x ino:%x sdev:%x mask:%x", &w.wd, &w.ino, &sdev, &w.mask); err != nil {
			return fmt.Errorf("read watch %q: %w", line, err)
		}
		if unix.Mkdev(uint32(sdev>>20), uint32(sdev&(1<<20-1))) != s.dev {
			others++
			continue
		}
		ours++
		d.watch = append(d.watch, w)
	}
	if ours == 0 {
		return nil
	}
	d.obj.ino = ^uint64(0) // of no file
	d.obj.path = "inotify"
	if others > 0 {
		s.stick("process %d has an inotify descriptor (%d) with watches outside of its files, too", d.pid, d.fd)
	}
	slices.SortFunc(d.watch, func(a, b watch) int { return a.wd - b.wd })
	n, err := queued(d)
	if err != nil {
		return err
	}
	if n > 0 {
		s.stick("process %d has not read all events of its inotify descriptor %d", d.pid, d.fd)
	}
	return nil
}

// copyOf takes a copy of a descriptor of a process.
func copyOf(pid, fd int) (*os.File, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	n, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return nil, fmt.Errorf("copy descriptor %d of process %d: %w", fd, pid, err)
	}
	return os.NewFile(uintptr(n), "copy"), nil
}

func queued(d *description) (int, error) {
	f, err := copyOf(d.pid, d.fd)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
	if err != nil {
		return 0, fmt.Errorf("count events: %w", err)
	}
	return n, nil
}

// mostWatches bounds how far a fresh instance is counted up to the number of a watch.
const mostWatches = 1 << 16

// makeInotify makes a fresh instance with the same numbers for the local files.
func (w *switching) makeInotify(d *description) (*os.File, error) {
	// The last close of an instance waits until nobody can look at its watches any more (fsnotify_wait_marks_destroyed), 20 ms: not while
	// the tree is stopped.
	old, err := copyOf(d.pid, d.fd)
	if err != nil {
		return nil, err
	}
	w.o.stopped.later = append(w.o.stopped.later, old)
	flags := 0
	if d.info.flags&unix.O_NONBLOCK != 0 {
		flags = unix.IN_NONBLOCK
	}
	fd, err := unix.InotifyInit1(flags | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make inotify instance: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	next := 1
	for _, x := range d.watch {
		if x.wd < next || x.wd-next > mostWatches {
			f.Close()
			return nil, fmt.Errorf("give watch number %d again: %w", x.wd, unix.ERANGE)
		}
		for ; next <= x.wd; next++ {
			path, mask := "/", uint32(unix.IN_DELETE_SELF) // only to count on
			if next == x.wd {
				path, mask = "", x.mask&^notAsked
			}
			if err := w.addWatch(fd, x.ino, path, mask, next); err != nil {
				f.Close()
				return nil, err
			}
			if next != x.wd {
				if _, err := unix.InotifyRmWatch(fd, uint32(next)); err != nil {
					f.Close()
					return nil, fmt.Errorf("remove watch: %w", err)
				}
			}
		}
	}
	// The watches that were removed have said so.
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err == nil && n > 0 {
		_, err = unix.Read(fd, make([]byte, n))
	}
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		f.Close()
		return nil, fmt.Errorf("empty inotify instance: %w", err)
	}
	return f, nil
}

func (w *switching) addWatch(fd int, ino uint64, path string, mask uint32, want int) error {
	if path == "" {
		o, err := w.openPath(ino, unix.O_PATH)
		if err != nil {
			return err
		}
		defer o.Close()
		path = fmt.Sprintf("/proc/self/fd/%d", o.Fd())
	}
	got, err := unix.InotifyAddWatch(fd, path, mask)
	if err != nil {
		return fmt.Errorf("add watch: %w", err)
	}
	if got != want {
		return fmt.Errorf("watch got number %d instead of %d: %w", got, want, unix.ERANGE)
	}
	return nil
}

// epollItem is what an epoll descriptor waits for.
type epollItem struct {
	set       *epollSet
	epoll, fd int
	events    uint32
	data      uint64
}

// epollSet is one that processes may share.
type epollSet struct {
	tid, fd int          // who has it
	done    map[int]bool // entries that some process adds again
}

// lookAtEpoll keeps what an epoll descriptor waits for; what is replaced has to be added again.
func (s *survey) lookAtEpoll(p *process, fd int) error {
	in, err := readFDInfo(p.tid, fd)
	if err != nil || len(in.lines) == 0 {
		return err
	}
	set := &epollSet{tid: p.tid, fd: fd, done: map[int]bool{}}
	known := false
	for _, o := range s.epolls {
		if known, err = kcmp(p.tid, o.tid, kcmpFile, uint64(fd), uint64(o.fd)); err != nil {
			return err
		}
		if known {
			set = o
			break
		}
	}
	if !known {
		s.epolls = append(s.epolls, set)
	}
	for _, line := range in.lines {
		it := epollItem{set: set, epoll: fd}
		// "tfd:        5 events:       19 data:                5  pos:0 ino:61af sdev:7", events and data in hex
		if _, err := fmt.Sscanf(strings.Join(strings.Fields(line), " "), "tfd: %d events: %x data: %x", &it.fd, &it.events, &it.data); err != nil {
			return fmt.Errorf("read epoll entry %q: %w", line, err)
		}
		p.epolls = append(p.epolls, it)
	}
	return nil
}

// watched drops epoll entries of descriptors that stay what they are, those that another process adds, and those that were made with another file
// than the number refers to in this process.
func (s *survey) watched() {
	for _, p := range s.processes {
		p.epolls = slices.DeleteFunc(p.epolls, func(it epollItem) bool {
			replaced := slices.ContainsFunc(p.fds, func(d descriptor) bool {
				return d.fd == it.fd && slices.Contains([]kind{fifo, inotify, unixSocket, stream}, d.desc.kind)
			})
			if !replaced || it.set.done[it.fd] || !watches(p.tid, it.epoll, it.fd) {
				return true
			}
			it.set.done[it.fd] = true
			return false
		})
	}
}
