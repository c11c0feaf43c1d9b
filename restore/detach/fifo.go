package detach

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A FIFO's name is a file, what is in it is memory of the kernel and belongs to the inode. So the FIFO of the new root is filled with the same, by
// tee(2), which takes nothing out of the old one: nothing has to be undone. Threads that wait in read, write or open begin again at the new one when the tree
// goes on (ERESTARTSYS; fs/pipe.c, Linux 6.18). Nobody else can hold the old one: it is of a file system that only the tree uses.

// getFD copies a descriptor of the tree, and proves that it is of the file that was looked at.
func (d *description) getFD() (*os.File, error) {
	pidfd, err := unix.PidfdOpen(d.pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", d.pid, err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, d.fd, 0)
	if err != nil {
		return nil, fmt.Errorf("copy descriptor %d of process %d: %w", d.fd, d.pid, err)
	}
	f := os.NewFile(uintptr(fd), d.obj.path)
	st, err := Peek(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && st.Ino != d.obj.ino {
		err = unix.ESTALE
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("look at descriptor %d of process %d: %w", d.fd, d.pid, err)
	}
	return f, nil
}

// readable says that tee(2) can take from the description.
func (d *description) readable() bool { return d.info.flags&unix.O_ACCMODE != unix.O_WRONLY }

// unreadable refuses FIFOs that have bytes in them and that only writers have open.
func (s *survey) unreadable() error {
	readers := map[uint64]bool{}
	for _, d := range s.descs {
		readers[d.obj.ino] = readers[d.obj.ino] || d.kind == fifo && d.readable()
	}
	for _, d := range s.descs {
		if d.kind != fifo || readers[d.obj.ino] {
			continue
		}
		f, err := d.getFD()
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESTALE) {
			continue // closed meanwhile, in a tree that runs
		}
		if err != nil {
			return err
		}
		n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
		f.Close()
		if err != nil {
			return fmt.Errorf("bytes in %s: %w", d.obj.path, err)
		}
		if n > 0 {
			s.stick("%s has %d bytes in it, and nobody has it open for reading", d.obj.path, n)
		}
	}
	return nil
}

// fillFIFOs opens and fills the FIFOs of the new root. Both ends stay open meanwhile: no open waits for the other end, and what is in one lasts until the tree
// has it.
func (w *switching) fillFIFOs() error {
	for _, d := range w.s.descs {
		if d.kind != fifo {
			continue
		}
		k := fileKey{d.obj.ino, unix.O_RDWR | unix.O_NONBLOCK}
		if w.opened[k] == nil {
			f, err := w.openPath(k.ino, k.flags)
			if err != nil {
				return err
			}
			w.opened[k] = f
			if st, err := Peek(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
				return fmt.Errorf("the local file of %s is no FIFO (mode %o): %w", d.obj.path, st.Mode, errors.Join(err, unix.ESTALE))
			}
		}
		if !d.readable() {
			continue
		}
		if err := d.tee(w.opened[k]); err != nil {
			return fmt.Errorf("copy what is in %s: %w", d.obj.path, err)
		}
	}
	return nil
}

// tee fills a FIFO with what is in that of d, if it has not been.
func (d *description) tee(to *os.File) error {
	from, err := d.getFD()
	if err != nil {
		return err
	}
	defer from.Close()
	in, out := int(from.Fd()), int(to.Fd())
	want, err := unix.IoctlGetInt(in, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("count bytes: %w", err)
	}
	have, err := unix.IoctlGetInt(out, unix.TIOCINQ)
	if err != nil || have == want {
		return err
	}
	if have > 0 {
		return fmt.Errorf("%d bytes are in the local one: %w", have, unix.EEXIST)
	}
	size, err := unix.FcntlInt(uintptr(in), unix.F_GETPIPE_SZ, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(out), unix.F_SETPIPE_SZ, size)
	}
	if err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	for have < want { // it begins at the front each time, so it has to take all at once
		n, err := unix.Tee(in, out, want, unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("tee: %w", err)
		}
		if have = int(n); have != want {
			return fmt.Errorf("tee: %d of %d bytes: %w", n, want, unix.EIO)
		}
	}
	return nil
}

// openFIFO opens one end in the new root.
func (w *switching) openFIFO(d *description) (*os.File, error) {
	f, err := w.openHere(d.obj.ino, d.info.flags&openFlags|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err == nil { // O_DIRECT: each write is a packet
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags&^unix.O_NONBLOCK|d.info.flags&(unix.O_NONBLOCK|unix.O_DIRECT))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("set flags: %w", err)
	}
	return f, nil
}
