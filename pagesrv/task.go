package pagesrv

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
)

// task is one process whose memory is served. Its descriptors are opened at the first use after the freeze,
// because /proc/PID/mem and pagemap stay with the address space that they were opened on: an exec would leave them empty.
type task struct {
	id    uint32
	pid   int
	pidfd *os.File

	mu     sync.RWMutex // held for reading while files are in use
	files  *taskFiles   // nil: to be opened
	closed bool
}

// taskFiles are the views of one address space.
type taskFiles struct {
	mem     *os.File
	pagemap *os.File
	status  *os.File
	anon    []Range // private anonymous mappings, merged and sorted
}

// Range is [Start, End) of addresses.
type Range struct{ Start, End uint64 }

// openTask pins the process by a pidfd and checks that it is the one that the images call id.
func openTask(id uint32, pid int) (*task, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	t := &task{id: id, pid: pid, pidfd: os.NewFile(uintptr(fd), fmt.Sprintf("pidfd:%d", pid))}
	if err := t.identify(); err != nil {
		_ = t.pidfd.Close()
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return t, nil
}

func (t *task) identify() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", t.pid))
	if err != nil {
		return err
	}
	for v := range strings.FieldsSeq(string(statusField(b, "NSpid:"))) {
		if v == strconv.FormatUint(uint64(t.id), 10) {
			return t.exists()
		}
	}
	return fmt.Errorf("task %d is none of its numbers (%s): %w", t.id, statusField(b, "NSpid:"), unix.ESRCH)
}

// use calls f with the task's files, opening them first if need be.
func (t *task) use(f func(*taskFiles) error) error {
	t.mu.RLock()
	for t.files == nil {
		t.mu.RUnlock()
		if err := t.refresh(false); err != nil {
			return err
		}
		t.mu.RLock()
	}
	defer t.mu.RUnlock()
	return f(t.files)
}

// refresh opens the files, again if they were open and again is set.
func (t *task) refresh(again bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("open memory of task %d: %w", t.id, ErrClosed)
	}
	if t.files != nil && !again {
		return nil
	}
	f, err := openFiles(t.pid)
	if err == nil {
		if err = t.exists(); err != nil { // else the files may be another process's with the same number
			f.close()
		}
	}
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			err = fmt.Errorf("%w: %w", ErrSourceLost, unix.ESRCH)
		}
		return fmt.Errorf("open memory of task %d: %w", t.id, err)
	}
	t.files.close()
	t.files = f
	return nil
}

func (t *task) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.files.close()
	t.files, t.closed = nil, true
	_ = t.pidfd.Close()
}

func openFiles(pid int) (*taskFiles, error) {
	f := &taskFiles{}
	for _, o := range []struct {
		name string
		to   **os.File
	}{{"mem", &f.mem}, {"pagemap", &f.pagemap}, {"status", &f.status}} {
		p, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, o.name))
		if err != nil {
			f.close()
			return nil, err
		}
		*o.to = p
	}
	var err error
	if f.anon, err = anonymousMappings(pid); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *taskFiles) close() {
	if f == nil {
		return
	}
	for _, c := range []*os.File{f.mem, f.pagemap, f.status} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// anonymousMappings lists where an absent page is zero: private, without a file, and not the kernel's own ([vdso] and its like).
func anonymousMappings(pid int) ([]Range, error) {
	m, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var out []Range
	s := bufio.NewScanner(m)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		// 7f0000000000-7f0000001000 rw-p 00000000 00:00 0      [heap]
		l := strings.Fields(s.Text())
		if len(l) < 5 {
			return nil, fmt.Errorf("read maps of %d: line %q", pid, s.Text())
		}
		if l[4] != "0" || len(l[1]) != 4 || l[1][3] != 'p' || (len(l) > 5 && kernelMapping(l[5])) {
			continue
		}
		from, to, _ := strings.Cut(l[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("read maps of %d: %w", pid, err)
		}
		if n := len(out); n > 0 && out[n-1].End == start {
			out[n-1].End = end
			continue
		}
		out = append(out, Range{start, end})
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read maps of %d: %w", pid, err)
	}
	return out, nil
}

func kernelMapping(name string) bool {
	return strings.HasPrefix(name, "[v") || name == "[uprobes]"
}

// exists fails when the process has ended (a zombie has ended); while it succeeds, its number is its own.
func (t *task) exists() error {
	p := []unix.PollFd{{Fd: int32(t.pidfd.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("poll pidfd: %w", err)
		case n != 0:
			return fmt.Errorf("task %d has ended: %w: %w", t.id, ErrSourceLost, unix.ESRCH)
		}
		return nil
	}
}

// scanHeld proves, after a scan, that what the scan called absent was so in the living task; see the package doc, 3.
func (t *task) scanHeld(f *taskFiles) error {
	var entry [pagemap.EntrySize]byte
	n, err := pread(f.pagemap, entry[:], 0)
	if err == nil && n == 0 {
		err = unix.ESRCH
	}
	if err != nil {
		return fmt.Errorf("task %d has lost its address space: %w: %w", t.id, ErrSourceLost, err)
	}
	killed, err := killPending(f.status)
	if err == nil && killed {
		err = unix.ESRCH
	}
	if err != nil {
		return fmt.Errorf("task %d is being killed: %w: %w", t.id, ErrSourceLost, err)
	}
	return nil
}

const sigkillBit = 1 << (unix.SIGKILL - 1)

// killPending reads the signals pending for the thread and for the process. The latter keeps SIGKILL until the task is reaped.
func killPending(status *os.File) (bool, error) {
	var small [4096]byte
	buf := small[:]
	for {
		n, err := pread(status, buf, 0)
		if err != nil {
			return false, err
		}
		own, shared := statusField(buf[:n], "SigPnd:"), statusField(buf[:n], "ShdPnd:")
		if own != nil && shared != nil {
			a, err1 := strconv.ParseUint(string(own), 16, 64)
			b, err2 := strconv.ParseUint(string(shared), 16, 64)
			return (a|b)&sigkillBit != 0, errors.Join(err1, err2)
		}
		if n < len(buf) || len(buf) > 4<<20 { // 65,536 groups stand before them
			return false, fmt.Errorf("no pending signals in %s: %w", status.Name(), unix.EIO)
		}
		buf = make([]byte, len(buf)*8)
	}
}

// statusField is the value of a line of /proc/PID/status, nil if the line is not there or not whole.
func statusField(b []byte, name string) []byte {
	_, b, ok := bytes.Cut(b, []byte("\n"+name))
	if !ok {
		return nil
	}
	v, _, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return nil
	}
	return bytes.TrimSpace(v)
}

// pread is pread64 without os.File's turning of short reads into errors. At the end it gives 0.
func pread(f *os.File, b []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(f.Fd()), b, off)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}
