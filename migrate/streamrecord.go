package migrate

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// streamRecord is what a successor needs besides the pipes and files: four numbers a stream, in a memfd that both map. A number changes at once or not at all.
type streamRecord struct {
	file *os.File
	page []byte
}

const (
	recordAcked  = 0 // the peer has passed on what is before
	recordOut    = 1 // outEOF, outDone
	recordPassed = 2 // of keptQueue: how many were put into it, in the low queueBits; above, how many are before those
	recordIn     = 3 // inClosed, inRefused
	recordEach   = 4
	queueBits    = 17 // a queue is never given more than streamPiece
	recordSize   = 4096
)

const (
	outEOF    = 1 // nothing more is read
	outDone   = 2 // nothing more is sent
	inClosed  = 1 // all has been passed on, and the end
	inRefused = 2 // nobody reads it any more
)

// memfd makes a file of memory.
func memfd(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make file of memory: %w", err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make file of memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openStreamRecord opens what f is for this process alone: whoever is killed lets go of it with its last thread, so that no two carry at once.
func openStreamRecord(f *os.File) (*streamRecord, error) {
	// A lock belongs to an open file, and the one that is passed on is the same for all.
	own, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open record of streams: %w", err)
	}
	var page []byte
	if err = unix.Flock(int(own.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = fmt.Errorf("the streams are carried by another process: %w", err)
	} else if page, err = unix.Mmap(int(own.Fd()), 0, recordSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		err = fmt.Errorf("map record of streams: %w", err)
	}
	if err != nil {
		own.Close()
		return nil, err
	}
	return &streamRecord{file: own, page: page}, nil
}

func (r *streamRecord) close() {
	if r != nil && r.page != nil {
		_ = unix.Munmap(r.page) // it is mapped
		r.page = nil
		r.file.Close()
	}
}

func (r *streamRecord) number(stream uint32, which int) *atomic.Uint64 {
	i := 8 * (int(stream)*recordEach + which)
	return (*atomic.Uint64)(unsafe.Pointer(&r.page[i : i+8][0])) // a page is aligned
}

// pass records what is in a queue, or is about to be.
func (r *streamRecord) pass(stream uint32, before uint64, queued int) {
	r.number(stream, recordPassed).Store(before<<queueBits | uint64(queued))
}

// passed is how many bytes have been passed on when a queue holds so many.
func (r *streamRecord) passed(stream uint32, left int) uint64 {
	n := r.number(stream, recordPassed).Load()
	before, queued := n>>queueBits, n&(1<<queueBits-1)
	if queued == 0 {
		return before
	}
	return before + queued - uint64(left)
}
