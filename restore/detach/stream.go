package detach

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Stream is a file that takes the place of a pipe or socket of the tree whose other end is ours: a standard stream that goes to a file of this host, to its journald
// or nowhere. Settle sees to it that what is in the pipe is passed on before; nothing comes while the tree is stopped.
type Stream struct {
	Link string // of its descriptors in /proc: pipe:[N] or socket:[N]
	File *os.File
}

func (s *survey) stream(link string) int {
	return slices.IndexFunc(s.streams, func(x Stream) bool { return x.Link == link })
}

func (s *survey) lookAtStream(d *description, link string) (err error) {
	i := s.stream(link)
	d.kind, d.obj = stream, object{ino: ^uint64(1) - uint64(i), path: link} // of no file
	d.info, err = readFDInfo(d.tid, d.fd)
	return err
}

// unpollable refuses streams that the tree waits for by epoll if what takes their place can't be in one.
func (s *survey) unpollable() error {
	for _, p := range s.processes {
		for _, it := range p.epolls {
			i := slices.IndexFunc(p.fds, func(d descriptor) bool { return d.fd == it.fd && d.desc.kind == stream })
			if i < 0 {
				continue
			}
			f := s.streams[s.stream(p.fds[i].desc.obj.path)].File
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil {
				return fmt.Errorf("look at what takes the place of a stream: %w", err)
			}
			if k := st.Mode & unix.S_IFMT; k == unix.S_IFREG || k == unix.S_IFCHR {
				s.stick("process %d waits by epoll for descriptor %d, a standard stream, and can't for what takes its place", p.pid, it.fd)
			}
		}
	}
	return nil
}

// takeStream gives the description what takes its place.
func (w *switching) takeStream(d *description) (*os.File, error) {
	fd, err := unix.FcntlInt(w.s.streams[w.s.stream(d.obj.path)].File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copy what takes its place: %w", err)
	}
	f := os.NewFile(uintptr(fd), d.obj.path)
	if err := unix.SetNonblock(fd, d.info.flags&unix.O_NONBLOCK != 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("set flags of what takes its place: %w", err)
	}
	return f, nil
}
