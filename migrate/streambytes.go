package migrate

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// streamBytes holds what has been read of a stream until the peer has passed it on. Offsets are the stream's. Its user locks: fill is called by one goroutine, without a lock,
// and returns how many bytes there are more behind those that there were; the others are not called for what fill has not yet told.
type streamBytes interface {
	fill(e *streamEnd, have uint64) (int, error) // 0, nil: there is no more
	read(p []byte, from, have uint64) int
	drop(acked uint64) // what is before is not needed any more
	over(how uint64)   // remembers outEOF, outDone
}

// heldBytes are streamBytes that end with this process.
type heldBytes struct {
	mu  sync.Mutex
	buf []byte // from acked on
	at  uint64 // acked
	p   []byte
}

func (m *heldBytes) fill(e *streamEnd, _ uint64) (int, error) {
	if m.p == nil {
		m.p = make([]byte, streamPiece)
	}
	n, err := e.read(m.p)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buf = append(m.buf, m.p[:n]...)
	return n, err
}

func (m *heldBytes) read(p []byte, from, have uint64) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.buf[from-m.at:have-m.at])
}

func (m *heldBytes) drop(acked uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buf, m.at = m.buf[acked-m.at:], acked
}

func (m *heldBytes) over(uint64) {}

// keptBytes are streamBytes that outlive this process. What it has taken from the stream is in a file of memory (memfd) that others hold, too, and splice(2) puts it there: that takes bytes from a
// pipe as it appends them to a file, in one system call that a SIGKILL does not tear (fs/splice.c, iter_file_splice_write: a buffer leaves the pipe by as much as the file
// has taken). So the file's size is how much of the stream has been read, at any moment. Sockets can be spliced into pipes only, so theirs go through one more, which is kept, too: what is found
// in it comes before what the socket has. What is acknowledged is written to the record, then its pages are given back.
type keptBytes struct {
	mem     int
	via     int // a pipe, both ends; -1: the stream is one itself
	rec     *streamRecord
	stream  uint32
	punched uint64
}

// stepHook is called between the steps that are to be torn by a SIGKILL; nil but in tests (TestCarrierDies).
var stepHook func(step string)

func step(what string) {
	if stepHook != nil {
		stepHook(what)
	}
}

func (k *keptBytes) fill(e *streamEnd, have uint64) (int, error) {
	off := int64(have)
	if k.via < 0 {
		step("before splice")
		n, err := splice(e.fd, k.mem, &off)
		step("after splice")
		return n, err
	}
	if n, err := k.settle(have); n > 0 || err != nil {
		return n, err
	}
	step("before splice")
	if n, err := splice(e.fd, k.via, nil); err != nil || n == 0 {
		return 0, err
	}
	step("in between")
	n, err := k.settle(have)
	step("after splice")
	return n, err
}

// settle takes what has been read of a socket, and has not come further.
func (k *keptBytes) settle(have uint64) (int, error) {
	off := int64(have)
	for {
		left, err := readable(k.via)
		if err == nil && left > 0 {
			_, err = splice(k.via, k.mem, &off) // a signal ends it early
		}
		n := int(off - int64(have))
		if err != nil && n == 0 {
			return 0, err
		}
		if err != nil || left == 0 {
			return n, nil
		}
	}
}

func (k *keptBytes) read(p []byte, from, have uint64) int {
	n, _ := unix.Pread(k.mem, p[:min(uint64(len(p)), have-from)], int64(from)) // memory: it is there
	return max(n, 0)
}

const pageMask = 4095

func (k *keptBytes) drop(acked uint64) {
	step("before ack")
	k.rec.number(k.stream, recordAcked).Store(acked)
	step("after ack")
	if to := acked &^ pageMask; to > k.punched {
		_ = unix.Fallocate(k.mem, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(k.punched), int64(to-k.punched)) // else they stay
		k.punched = to
	}
}

func (k *keptBytes) over(how uint64) { k.rec.number(k.stream, recordOut).Or(how) }

// keptQueue passes bytes on so that a successor can tell how many of them: they are written to a pipe of our own first, from which splice(2) moves them on. Nobody else reads that pipe, so
// what is missing in it has arrived.
//
//	record: written W, queue 0      write(queue)      record: written W, queue n      splice(queue → end)
//
// Whoever finds "queue 0" has passed nothing of the queue on; whoever finds n has passed on W + n - FIONREAD(queue) (streamRecord.passed). What is left in the queue is thrown away: the peer has not
// been told that it is passed on, and sends it again.
type keptQueue struct {
	pipe   int // both ends
	rec    *streamRecord
	stream uint32
	have   int // in the pipe
}

// pass passes on some of p, which begins at offset written.
func (k *keptQueue) pass(e *streamEnd, p []byte, written uint64) (int, error) {
	if k.have == 0 {
		k.rec.pass(k.stream, written, 0)
		step("before queue")
		n, err := unix.Write(k.pipe, p)
		if err != nil {
			return 0, err
		}
		step("after queue")
		k.have = n
		k.rec.pass(k.stream, written, n)
	}
	step("before pass")
	n, err := splice(k.pipe, e.fd, nil)
	step("after pass")
	k.have -= n
	return n, err
}

func (k *keptQueue) over(how uint64) {
	if k != nil {
		k.rec.number(k.stream, recordIn).Or(how)
	}
}

// splice moves what there is. Neither side waits.
func splice(from, to int, off *int64) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, off, streamPiece, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if !errors.Is(err, unix.EINTR) {
			return int(max(n, 0)), err
		}
	}
}

// readable is how many bytes a pipe holds.
func readable(fd int) (int, error) {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD
	if err != nil {
		return 0, fmt.Errorf("how much is in a pipe: %w", err)
	}
	return n, nil
}
