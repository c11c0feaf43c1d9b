package detach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// switching is one Switch at work.
type switching struct {
	o      *Options
	s      *survey
	local  Local
	dbs    databases
	inRoot *fsThread // its root is the new one
	opened map[fileKey]*os.File
}

// fileKey names a file that is opened for something else than a description: a mapping, an executable, a directory.
type fileKey struct {
	ino   uint64
	flags int
}

// openPath opens a local file by the inode of the old one.
func (w *switching) openPath(ino uint64, flags int) (f *os.File, err error) {
	err = w.inRoot.do(func() (err error) {
		f, err = w.openHere(ino, flags)
		return err
	})
	return f, err
}

// openHere is openPath on the thread of the new root.
func (w *switching) openHere(ino uint64, flags int) (*os.File, error) {
	path, ok := w.local.Files[ino]
	if !ok {
		return nil, fmt.Errorf("inode %d: it has no local file", ino)
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open local file %s: %w", path, err)
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// What open(2) takes from a description. O_TRUNC, O_CREAT and O_EXCL are not kept in it, O_LARGEFILE (0100000 in fdinfo) is always set.
const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_DSYNC | unix.O_SYNC | unix.O_NOATIME | unix.O_DIRECTORY | unix.O_PATH | unix.O_ASYNC

// openAll opens all descriptions anew and what mappings, directories and executables need.
func (w *switching) openAll() error {
	if err := w.fillFIFOs(); err != nil {
		return err
	}
	if err := w.inRoot.do(w.openFiles); err != nil {
		return err
	}
	for _, last := range []bool{false, true} { // sockets make nodes, which watches would see
		for _, d := range w.s.descs {
			if (d.kind == inotify) != last {
				continue
			}
			var err error
			switch d.kind {
			case inotify:
				d.file, err = w.makeInotify(d)
			case unixSocket:
				d.file, err = w.makeSocket(d)
			case stream:
				d.file, err = w.takeStream(d)
			default:
				err = w.setUp(d)
			}
			if err != nil {
				return fmt.Errorf("descriptor %d of process %d (%s): %w", d.fd, d.pid, d.obj.path, err)
			}
		}
	}
	return nil
}

func (w *switching) openFiles() error {
	for _, d := range w.s.descs {
		if d.kind == inotify || d.kind == unixSocket || d.kind == stream || d.obj.stays {
			continue
		}
		flags := d.info.flags & openFlags
		if flags&unix.O_PATH != 0 {
			flags |= unix.O_NOFOLLOW
		}
		var err error
		if d.kind == fifo {
			d.file, err = w.openFIFO(d)
		} else {
			d.file, err = w.openHere(d.obj.ino, flags)
		}
		if err != nil {
			return fmt.Errorf("descriptor %d of process %d (%s): %w", d.fd, d.pid, d.obj.path, err)
		}
	}
	for _, p := range w.s.processes {
		for _, k := range p.needs() {
			if w.opened[k] != nil {
				continue
			}
			f, err := w.openHere(k.ino, k.flags)
			if err != nil {
				return fmt.Errorf("process %d: %w", p.pid, err)
			}
			w.opened[k] = f
		}
	}
	return nil
}

// needs are the files of a process beside those of its descriptors.
func (p *process) needs() []fileKey {
	var all []fileKey
	for _, o := range []*object{p.cwd, p.root} {
		if o != nil {
			all = append(all, fileKey{o.ino, unix.O_PATH | unix.O_DIRECTORY})
		}
	}
	if p.exe != nil {
		all = append(all, fileKey{p.exe.ino, unix.O_RDONLY})
	}
	for _, v := range p.maps {
		all = append(all, p.mapFile(v))
	}
	return all
}

// mapFile is the file of a mapping. One that may become writable has to be open for that.
func (p *process) mapFile(v vma) fileKey {
	if v.shared && p.writable(v) {
		return fileKey{v.ino, unix.O_RDWR}
	}
	return fileKey{v.ino, unix.O_RDONLY}
}

// writable says whether a mapping's file was opened for writing: the links in map_files have its mode (fs/proc/base.c).
func (p *process) writable(v vma) bool {
	fi, err := os.Lstat(fmt.Sprintf("/proc/%d/map_files/%x-%x", p.tid, v.start, v.end))
	if err != nil {
		return v.prot&unix.PROT_WRITE != 0
	}
	return fi.Mode()&0o200 != 0
}

// setUp gives a new description what the old one had, once it is proven to be the same file.
func (w *switching) setUp(d *description) error {
	fd := int(d.file.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at local file: %w", err)
	}
	if st.Mode&unix.S_IFMT != d.obj.mode&unix.S_IFMT {
		return fmt.Errorf("its local file is of another kind (mode %o instead of %o)", st.Mode, d.obj.mode)
	}
	if d.kind != regular || d.info.flags&unix.O_PATH != 0 {
		return nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size != d.obj.size {
		return fmt.Errorf("its local file has %d bytes instead of %d", st.Size, d.obj.size)
	}
	if _, err := unix.Seek(fd, d.info.pos, unix.SEEK_SET); err != nil {
		return fmt.Errorf("set offset: %w", err)
	}
	if d.info.flags&unix.O_DIRECT != 0 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT)
		}
		if err != nil {
			return fmt.Errorf("set O_DIRECT: %w", err)
		}
	}
	for _, l := range d.info.locks {
		var err error
		switch l.kind {
		case "FLOCK":
			how := unix.LOCK_SH
			if l.lk.Type == unix.F_WRLCK {
				how = unix.LOCK_EX
			}
			err = unix.Flock(fd, how|unix.LOCK_NB)
		case "OFDLCK":
			lk := l.lk
			err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk)
		}
		if err != nil {
			return fmt.Errorf("take lock (%s): %w", l.kind, err)
		}
	}
	return nil
}

// close closes this process's copies.
func (w *switching) close() {
	for _, f := range w.opened {
		f.Close()
	}
	for _, d := range w.s.descs {
		if d.file != nil {
			d.file.Close()
			d.file = nil
		}
	}
	w.inRoot.close()
}

// writeTime bounds how long the tree is stopped for each thing that whoever serves the old files is asked for.
const writeTime = 2 * time.Second

// writeBack brings what was written through shared mappings to the old file system's files.
func (s *survey) writeBack(ctx context.Context) error {
	_, err := bounded(ctx, "write mapped files", func() (any, error) { return nil, s.syncMapped() })
	return err
}

func (s *survey) syncMapped() error {
	done := map[uint64]bool{}
	for _, p := range s.processes {
		for _, v := range p.maps {
			if !v.shared || done[v.ino] || !p.writable(v) {
				continue
			}
			f, err := os.Open(fmt.Sprintf("/proc/%d/map_files/%x-%x", p.tid, v.start, v.end))
			if err != nil {
				return fmt.Errorf("open mapped file %s: %w", v.path, err)
			}
			err = f.Sync()
			f.Close()
			if err != nil {
				return fmt.Errorf("write mapped file %s: %w", v.path, err)
			}
			done[v.ino] = true
		}
	}
	return nil
}
