package detach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// prepared is what a process has got that nobody sees yet.
type prepared struct {
	j       *injected
	temps   map[*os.File]int // number in the process of each file that it has got
	moved   []newMapping
	entered bool // its directory is the new one
	oldCwd  *os.File
}

type newMapping struct {
	vma
	at uint64 // where the new one is for now
}

const fdsAtOnce = 253 // SCM_MAX_FD

// prepare brings everything into a process that it needs for the commit. Whatever it returns, undo takes it out again.
func (w *switching) prepare(p *process) error {
	j, err := inject(p.task(w))
	if err != nil {
		return err
	}
	p.p = &prepared{j: j, temps: map[*os.File]int{}}
	var files []*os.File
	add := func(f *os.File) {
		if f != nil && !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	for _, d := range p.fds {
		add(d.desc.file)
	}
	for _, k := range p.needs() {
		add(w.opened[k])
	}
	if p.cwd != nil {
		fd, err := unix.Open(p.proc("cwd"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open its directory: %w", err)
		}
		p.p.oldCwd = os.NewFile(uintptr(fd), "cwd")
		add(p.p.oldCwd)
	}
	if len(files) > 0 {
		if err := p.receive(files); err != nil {
			return fmt.Errorf("pass %d files: %w", len(files), err)
		}
	}
	if err := w.mapAll(p); err != nil {
		return err
	}
	if p.exe != nil {
		// Told before: nothing may fail for want of a permission later. As long as the old one is mapped the answer is EBUSY.
		if err := w.setExe(p); !errors.Is(err, unix.EBUSY) && err != nil {
			return &Stuck{[]string{fmt.Sprintf("process %d can't get another executable: %v", p.pid, err)}}
		}
	}
	return w.enter(p)
}

func (p *process) task(w *switching) *task {
	for _, t := range w.o.stopped.tasks {
		if t.tid == p.tid {
			return t
		}
	}
	return nil
}

// check turns results into an error.
func check(res []int64, what func(i int) string) error {
	var errs []error
	for i, r := range res {
		if r < 0 && r > -4096 {
			errs = append(errs, fmt.Errorf("%s: %w", what(i), unix.Errno(-r)))
		}
	}
	return errors.Join(errs...)
}

// receive passes files to the process, at the lowest free numbers.
func (p *process) receive(files []*os.File) error {
	j := p.p.j
	res, err := j.run(sysCall(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0, j.data(0)))
	if err == nil {
		err = check(res, func(int) string { return "make socket pair" })
	}
	if err != nil {
		return err
	}
	b := make([]byte, 8)
	if err := j.get(0, b); err != nil {
		return fmt.Errorf("read socket pair: %w", err)
	}
	theirs, ours := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
	err = p.receiveOn(files, theirs, ours)
	res, cerr := j.run(sysCall(unix.SYS_CLOSE, uint64(theirs)), sysCall(unix.SYS_CLOSE, uint64(ours)))
	if cerr == nil {
		cerr = check(res, func(int) string { return "close socket pair" })
	}
	return errors.Join(err, cerr)
}

func (p *process) receiveOn(files []*os.File, theirs, ours uint32) error {
	flags := 0
	if p.tid != p.pid {
		flags = unix.PIDFD_THREAD
	}
	pidfd, err := unix.PidfdOpen(p.tid, flags)
	if err != nil {
		return fmt.Errorf("open process: %w", err)
	}
	defer unix.Close(pidfd)
	sock, err := unix.PidfdGetfd(pidfd, int(ours), 0)
	if err != nil {
		return fmt.Errorf("take end of socket pair: %w", err)
	}
	defer unix.Close(sock)
	for len(files) > 0 {
		n := min(len(files), fdsAtOnce)
		var fds []int
		for _, f := range files[:n] {
			fds = append(fds, int(f.Fd()))
		}
		if err := unix.Sendmsg(sock, []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		got, err := p.take(theirs, n)
		for i, fd := range got {
			p.p.temps[files[i]] = fd
		}
		if err != nil {
			return err
		}
		files = files[n:]
	}
	return nil
}

// take lets the process receive one message with n files.
func (p *process) take(sock uint32, n int) ([]int, error) {
	const iovAt, byteAt, ctlAt = 64, 80, 128
	j := p.p.j
	var h unix.Msghdr
	size := unix.CmsgSpace(4 * n)
	b := make([]byte, ctlAt+size)
	ne := binary.NativeEndian
	ne.PutUint64(b[unsafe.Offsetof(h.Iov):], j.data(iovAt))
	ne.PutUint64(b[unsafe.Offsetof(h.Iovlen):], 1)
	ne.PutUint64(b[unsafe.Offsetof(h.Control):], j.data(ctlAt))
	ne.PutUint64(b[unsafe.Offsetof(h.Controllen):], uint64(size))
	ne.PutUint64(b[iovAt:], j.data(byteAt))
	ne.PutUint64(b[iovAt+8:], 1)
	if err := j.put(0, b); err != nil {
		return nil, err
	}
	res, err := j.run(sysCall(unix.SYS_RECVMSG, uint64(sock), j.data(0), unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT))
	if err == nil {
		err = check(res, func(int) string { return "receive" })
	}
	if err != nil {
		return nil, err
	}
	if err := j.get(0, b); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	used := ne.Uint64(b[unsafe.Offsetof(h.Controllen):])
	msgs, err := unix.ParseSocketControlMessage(b[ctlAt : ctlAt+min(uint64(size), used)])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("receive: no descriptors (the limit of open files is reached): %w", errors.Join(err, unix.EMFILE))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err == nil && len(fds) != n {
		err = fmt.Errorf("receive: %d descriptors of %d (the limit of open files is reached): %w", len(fds), n, unix.EMFILE)
	}
	return fds, err
}

// mapAll maps the local files at free addresses and copies what the process has changed in private mappings.
func (w *switching) mapAll(p *process) error {
	if len(p.maps) == 0 {
		return nil
	}
	var calls []call
	for _, v := range p.maps {
		flags := unix.MAP_PRIVATE
		if v.shared {
			flags = unix.MAP_SHARED
		}
		if strings.Contains(v.flags, " nr ") {
			flags |= unix.MAP_NORESERVE
		}
		fd := p.p.temps[w.opened[p.mapFile(v)]]
		calls = append(calls, sysCall(unix.SYS_MMAP, 0, v.end-v.start, uint64(v.prot), uint64(flags), uint64(fd), v.offset))
	}
	res, err := p.p.j.run(calls...)
	if err != nil {
		return err
	}
	for i, r := range res {
		if r > 0 || r < -4095 {
			p.p.moved = append(p.p.moved, newMapping{p.maps[i], uint64(r)})
		}
	}
	if err := check(res, func(i int) string { return "map local file of " + p.maps[i].path }); err != nil {
		return err
	}
	calls = nil
	for _, m := range p.p.moved {
		if !m.shared {
			if err := p.copyPages(m); err != nil {
				return fmt.Errorf("copy modified pages of %s: %w", m.path, err)
			}
		}
		calls = append(calls, m.advise()...)
	}
	res, err = p.p.j.run(calls...)
	if err == nil {
		err = check(res, func(int) string { return "set flags of mappings" })
	}
	return err
}

// advise makes the flags of madvise(2) and mlock(2) again.
func (m newMapping) advise() []call {
	var all []call
	for _, a := range []struct {
		flag   string
		advice uint64
	}{{" rr ", unix.MADV_RANDOM}, {" sr ", unix.MADV_SEQUENTIAL}, {" dc ", unix.MADV_DONTFORK}, {" dd ", unix.MADV_DONTDUMP}, {" hg ", unix.MADV_HUGEPAGE}, {" nh ", unix.MADV_NOHUGEPAGE}} {
		if strings.Contains(m.flags, a.flag) {
			all = append(all, sysCall(unix.SYS_MADVISE, m.at, m.end-m.start, a.advice))
		}
	}
	if strings.Contains(m.flags, " lo ") {
		all = append(all, sysCall(unix.SYS_MLOCK, m.at, m.end-m.start))
	}
	return all
}

// Bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageFile    = 1 << 61 // of a file, or shared
	pageSize    = 4096
)

// copyPages copies the anonymous pages of a private mapping.
func (p *process) copyPages(m newMapping) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", p.tid))
	if err != nil {
		return err
	}
	defer f.Close()
	pages := (m.end - m.start) / pageSize
	b := make([]byte, 8*min(pages, 64<<10))
	var buf []byte
	for first := uint64(0); first < pages; first += uint64(len(b) / 8) {
		n := min(pages-first, uint64(len(b)/8))
		if _, err := f.ReadAt(b[:8*n], int64((m.start/pageSize+first)*8)); err != nil {
			return fmt.Errorf("read pagemap: %w", err)
		}
		for i := uint64(0); i < n; {
			run := uint64(0)
			for i+run < n && anonymous(binary.NativeEndian.Uint64(b[8*(i+run):])) {
				run++
			}
			if run > 0 {
				if buf, err = p.copyRun(m, first+i, run, buf); err != nil {
					return err
				}
			}
			i += run + 1
		}
	}
	return nil
}

func anonymous(e uint64) bool { return e&(pagePresent|pageSwapped) != 0 && e&pageFile == 0 }

func (p *process) copyRun(m newMapping, first, n uint64, buf []byte) ([]byte, error) {
	size := int(n * pageSize)
	if len(buf) < size {
		buf = make([]byte, size)
	}
	if _, err := p.p.j.mem.ReadAt(buf[:size], int64(m.start+first*pageSize)); err != nil {
		return buf, fmt.Errorf("read pages: %w", err)
	}
	if _, err := p.p.j.mem.WriteAt(buf[:size], int64(m.at+first*pageSize)); err != nil {
		return buf, fmt.Errorf("write pages: %w", err)
	}
	return buf, nil
}

// enter makes the new directory the working directory, and sockets listen.
func (w *switching) enter(p *process) error {
	var calls []call
	var what []string
	for _, d := range p.fds {
		if d.desc.sock != nil && d.desc.sock.listens && d.desc.pid == p.pid && d.desc.fd == d.fd {
			calls = append(calls, sysCall(unix.SYS_LISTEN, uint64(p.p.temps[d.desc.file]), uint64(d.desc.sock.backlog)))
			what = append(what, "listen at "+d.desc.sock.node.path)
		}
	}
	if p.cwd != nil {
		calls = append(calls, sysCall(unix.SYS_FCHDIR, uint64(p.p.temps[w.opened[fileKey{p.cwd.ino, unix.O_PATH | unix.O_DIRECTORY}]])))
		what = append(what, "enter "+p.cwd.path)
	}
	if len(calls) == 0 {
		return nil
	}
	res, err := p.p.j.run(calls...)
	if err != nil {
		return err
	}
	p.p.entered = p.cwd != nil && res[len(res)-1] == 0
	return check(res, func(i int) string { return what[i] })
}

// undo takes out what prepare brought in.
func (p *process) undo() error {
	if p.p == nil || p.p.j.t.dead {
		return nil
	}
	var calls []call
	if p.p.entered {
		calls = append(calls, sysCall(unix.SYS_FCHDIR, uint64(p.p.temps[p.p.oldCwd])))
	}
	for _, m := range p.p.moved {
		calls = append(calls, sysCall(unix.SYS_MUNMAP, m.at, m.end-m.start))
	}
	calls = append(calls, p.closeTemps()...)
	defer p.forget()
	if len(calls) == 0 {
		return nil
	}
	res, err := p.p.j.run(calls...)
	if err == nil {
		err = check(res, func(int) string { return "undo" })
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", p.pid, err)
	}
	return nil
}

func (p *process) closeTemps() []call {
	var fds []int
	for _, fd := range p.p.temps {
		fds = append(fds, fd)
	}
	slices.Sort(fds)
	var all []call
	for _, fd := range fds {
		all = append(all, sysCall(unix.SYS_CLOSE, uint64(fd)))
	}
	return all
}

func (p *process) forget() {
	if p.p.oldCwd != nil {
		p.p.oldCwd.Close()
	}
	p.p = nil
}
