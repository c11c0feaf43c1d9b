package detach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// commit puts what is prepared in its place.
func (w *switching) commit(p *process) error {
	defer p.forget()
	var calls []call
	var what []string
	add := func(text string, c call) {
		calls, what = append(calls, c), append(what, text)
	}
	for _, m := range p.p.moved {
		size := m.end - m.start
		add("map "+m.path, sysCall(unix.SYS_MREMAP, m.at, size, size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, m.start))
	}
	for _, it := range p.epolls { // the old ones may live a moment longer than their numbers
		add(fmt.Sprintf("epoll of descriptor %d", it.fd), sysCall(unix.SYS_EPOLL_CTL, uint64(it.epoll), unix.EPOLL_CTL_DEL, uint64(it.fd), 0))
	}
	for _, d := range p.fds {
		cloexec := 0
		if d.cloexec {
			cloexec = unix.O_CLOEXEC
		}
		add(fmt.Sprintf("descriptor %d", d.fd), sysCall(unix.SYS_DUP3, uint64(p.p.temps[d.desc.file]), uint64(d.fd), uint64(cloexec)))
	}
	if p.root != nil {
		if err := p.p.j.put(0, []byte(".\x00")); err != nil {
			return err
		}
		dir := func(ino uint64) uint64 {
			return uint64(p.p.temps[w.opened[fileKey{ino, unix.O_PATH | unix.O_DIRECTORY}]])
		}
		add("enter root", sysCall(unix.SYS_FCHDIR, dir(p.root.ino)))
		add("change root", sysCall(unix.SYS_CHROOT, p.p.j.data(0)))
		if p.cwd != nil {
			add("enter directory", sysCall(unix.SYS_FCHDIR, dir(p.cwd.ino)))
		}
	}
	err := p.all(calls, what)
	if nerr := p.renumber(); nerr != nil {
		err = errors.Join(err, nerr)
	}
	if p.exe != nil {
		if eerr := w.setExe(p); eerr != nil {
			err = errors.Join(err, fmt.Errorf("set executable: %w", eerr))
		}
	}
	calls, what = nil, nil
	for _, c := range p.closeTemps() { // before the POSIX locks: closing any descriptor of a file ends these
		add("close", c)
	}
	if lerr := p.lockAgain(add); lerr != nil {
		err = errors.Join(err, lerr)
	}
	if perr := p.pollAgain(add); perr != nil {
		err = errors.Join(err, perr)
	}
	if err = errors.Join(err, p.all(calls, what)); err != nil {
		return fmt.Errorf("process %d: %w", p.pid, err)
	}
	return nil
}

func (p *process) all(calls []call, what []string) error {
	if len(calls) == 0 {
		return nil
	}
	res, err := p.p.j.run(calls...)
	if err != nil {
		return err
	}
	return check(res, func(i int) string { return what[i] })
}

// Where arguments lie in the data of a table.
const (
	locksAt = 0
	pollAt  = 32 << 10
)

func (p *process) lockAgain(add func(string, call)) error {
	size := int(unsafe.Sizeof(unix.Flock_t{}))
	var b []byte
	for i, l := range p.locks {
		lk := l.lk
		b = append(b, bytesOf(&lk)...)
		add(fmt.Sprintf("lock of descriptor %d", l.fd), sysCall(unix.SYS_FCNTL, uint64(l.fd), unix.F_SETLK, p.p.j.data(uint64(locksAt+i*size))))
	}
	if len(b) > pollAt-locksAt {
		return fmt.Errorf("%d POSIX locks: %w", len(p.locks), unix.E2BIG)
	}
	return p.p.j.put(locksAt, b)
}

func (p *process) pollAgain(add func(string, call)) error {
	const size = 12 // struct epoll_event is packed on x86-64
	var b []byte
	for i, it := range p.epolls {
		b = binary.NativeEndian.AppendUint32(b, it.events)
		b = binary.NativeEndian.AppendUint64(b, it.data)
		add(fmt.Sprintf("epoll of descriptor %d", it.fd), sysCall(unix.SYS_EPOLL_CTL, uint64(it.epoll), unix.EPOLL_CTL_ADD, uint64(it.fd), p.p.j.data(uint64(pollAt+i*size))))
	}
	return p.p.j.put(pollAt, b)
}

// setExe sets the executable of a process, EBUSY as long as the old one is mapped. The kernel wants CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in the
// caller's user namespace (kernel/sys.c, prctl_set_mm_map). A process without gets a child for that, which shares its memory and is in a user
// namespace of its own, where it has them; nothing of that stays.
func (w *switching) setExe(p *process) error {
	m, err := mmOf(p.tid)
	if err != nil {
		return err
	}
	j := p.p.j
	res, err := j.run(sysCall(unix.SYS_BRK, 0))
	if err != nil {
		return err
	}
	m.brk = uint64(res[0])
	m.exeFD = uint32(p.p.temps[w.opened[fileKey{p.exe.ino, unix.O_RDONLY}]])
	const at = 48 << 10
	if err := j.put(at, bytesOf(&m)); err != nil {
		return err
	}
	c := sysCall(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_MAP, j.data(at), uint64(unsafe.Sizeof(m)), 0)
	var r int64
	if capable(p.tid, unix.CAP_SYS_ADMIN) || capable(p.tid, unix.CAP_CHECKPOINT_RESTORE) {
		res, err := j.run(c)
		if err != nil {
			return err
		}
		r = res[0]
	} else if r, err = j.inChild(unix.CLONE_VM|unix.CLONE_VFORK|unix.CLONE_NEWUSER|unix.CLONE_FILES, c); err != nil {
		return err
	}
	if r < 0 {
		return unix.Errno(-r)
	}
	return nil
}
