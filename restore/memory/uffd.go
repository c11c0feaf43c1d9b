package memory

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// uffd is one userfaultfd whose features are FORK, REMAP, UNMAP and REMOVE: one ioctl, one method.
type uffd struct {
	fd     int
	once   sync.Once
	closed error
}

// takeUffd takes over f. The descriptor is made non-blocking: poll says POLLERR on a blocking one.
func takeUffd(f *os.File) (*uffd, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("take over userfaultfd: %w", err)
	}
	// Only now: closing the last copy of a userfaultfd turns what is missing into zeros.
	f.Close()
	return newUffd(fd)
}

func newUffd(fd int) (*uffd, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("make userfaultfd non-blocking: %w", err)
	}
	return &uffd{fd: fd}, nil
}

// openUffd makes one of this process, without any feature.
func openUffd() (*uffd, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("make userfaultfd: %w", errno)
	}
	u := &uffd{fd: int(fd)}
	a := uffdAPI{api: uffdVersion}
	if errno := u.ioctl(ioctlAPI, unsafe.Pointer(&a)); errno != 0 {
		unix.Close(u.fd)
		return nil, fmt.Errorf("make userfaultfd: %w", errno)
	}
	return u, nil
}

// register is UFFDIO_REGISTER: of the mm that the userfaultfd belongs to, whoever calls.
func (u *uffd) register(start, length uint64) error {
	a := uffdRegister{start: start, len: length, mode: modeMissing}
	if errno := u.ioctl(ioctlRegister, unsafe.Pointer(&a)); errno != 0 {
		return fmt.Errorf("register memory with userfaultfd: %w", errno)
	}
	return nil
}

// pending is how many faults wait to be read.
func (u *uffd) pending() (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(u.fd))
	if err != nil {
		return 0, fmt.Errorf("look at userfaultfd: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "pending:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, fmt.Errorf("look at userfaultfd: %w", unix.EINVAL)
}

// ready says whether there is something to read.
func (u *uffd) ready() bool {
	p := []unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err != nil || n > 0
}

func (u *uffd) close() error {
	u.once.Do(func() { u.closed = unix.Close(u.fd) })
	return u.closed
}

func (u *uffd) ioctl(req uintptr, arg unsafe.Pointer) unix.Errno {
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(u.fd), req, uintptr(arg))
		if e != unix.EINTR {
			return e
		}
	}
}

// copy is UFFDIO_COPY of src to dst, waking who waits there. src is on the heap or mapped, never on the stack.
func (u *uffd) copy(dst uint64, src []byte) result {
	a := uffdCopy{dst: dst, src: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(src)))), len: uint64(len(src))}
	e := u.ioctl(ioctlCopy, unsafe.Pointer(&a))
	runtime.KeepAlive(src)
	return result{errno: e, done: a.copy, length: a.len}
}

// zero is UFFDIO_ZEROPAGE.
func (u *uffd) zero(dst, length uint64) result {
	a := uffdFill{start: dst, len: length}
	e := u.ioctl(ioctlZeropage, unsafe.Pointer(&a))
	return result{errno: e, done: a.done, length: length}
}

// poison is UFFDIO_POISON: an access gets SIGBUS.
func (u *uffd) poison(dst, length uint64) result {
	a := uffdFill{start: dst, len: length}
	e := u.ioctl(ioctlPoison, unsafe.Pointer(&a))
	return result{errno: e, done: a.done, length: length}
}

// wake lets those who wait in the range fault again.
func (u *uffd) wake(start, length uint64) {
	a := uffdRange{start: start, len: length}
	_ = u.ioctl(ioctlWake, unsafe.Pointer(&a))
}

// changing says whether an operation on the mappings has begun whose event has not been read, or whose thread has not
// run since. UFFDIO_COPY looks at that count before anything else, so a copy to an address that is no page's is a
// question without an effect: EAGAIN or EINVAL (fs/userfaultfd.c, userfaultfd_copy).
func (u *uffd) changing() (bool, error) {
	a := uffdCopy{dst: 1, src: noSource(), len: pageSize}
	switch e := u.ioctl(ioctlCopy, unsafe.Pointer(&a)); e {
	case unix.EAGAIN:
		return true, nil
	case unix.EINVAL:
		return false, nil
	default:
		return false, fmt.Errorf("ask userfaultfd for changes: %w", e)
	}
}

// registered says whether the whole range lies in one VMA that is registered with this userfaultfd: a copy from memory
// that cannot be read fails with EFAULT only after the VMA was found (mm/userfaultfd.c, mfill_atomic), and with ENOENT
// otherwise. EAGAIN means that the mappings are changing, ESRCH that the mm is gone.
func (u *uffd) registered(start, length uint64) (bool, error) {
	a := uffdCopy{dst: start, src: noSource(), len: length}
	switch e := u.ioctl(ioctlCopy, unsafe.Pointer(&a)); e {
	case unix.EFAULT:
		return true, nil
	case unix.ENOENT:
		return false, nil
	default:
		return false, e
	}
}

// noSource is a page that nobody can read.
var noSource = sync.OnceValue(func() uint64 {
	p, err := unix.Mmap(-1, 0, pageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		panic(fmt.Sprintf("memory: map a page without access: %v", err))
	}
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
})

// readEvents reads what is there, at most len(buf) messages; none is no error.
func (u *uffd) readEvents(buf []uffdMsg) (int, error) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(buf))), len(buf)*int(unsafe.Sizeof(buf[0])))
	for {
		n, err := unix.Read(u.fd, b)
		switch err {
		case nil:
			return n / int(unsafe.Sizeof(buf[0])), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, fmt.Errorf("read userfaultfd: %w", err)
		}
	}
}
