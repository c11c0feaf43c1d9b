package migrate

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/restore"
)

// A relay's carrier may be killed: the guardian has copies of all that the next one needs, by these numbers. What is below restore.KeepBeside are ends of the tree's streams, by the stream's
// number, and closing them is what the tree sees; the rest makes no difference to it.
const (
	keptFile   = restore.KeepBeside     // keptBytes.mem
	keptVia    = 2 * restore.KeepBeside // keptBytes.via
	keptPipe   = 3 * restore.KeepBeside // keptQueue.pipe
	keptRecord = 4 * restore.KeepBeside
)

// keep makes number which of a stream what the guardian gets, and returns a descriptor of our own.
func (st *targetStdio) keep(id uint32, f *os.File) (int, error) {
	st.ours[id] = f
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("copy descriptor: %w", err)
	}
	st.fds = append(st.fds, fd)
	return fd, nil
}

// record makes the record with the first stream that needs it.
func (st *targetStdio) record() (err error) {
	if st.rec != nil {
		return nil
	}
	f, err := memfd("lazymig-streams", recordSize)
	if err != nil {
		return err
	}
	if st.rec, err = openStreamRecord(f); err != nil {
		f.Close()
		return err
	}
	st.ours[keptRecord] = f
	return nil
}

// bothEnds makes a pipe that one descriptor reads and writes (fifo(7)).
func bothEnds(name string) (*os.File, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p[0]), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open pipe: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// keepOut adds a stream that the tree writes.
func (st *targetStdio) keepOut(stream uint32, e *streamEnd) error {
	k := &keptBytes{via: -1, stream: stream}
	err := st.record()
	k.rec = st.rec
	var f *os.File
	if err == nil {
		f, err = memfd("lazymig-stream", 0)
	}
	if err == nil {
		k.mem, err = st.keep(keptFile+stream, f)
	}
	if err == nil && e.socket {
		if f, err = bothEnds("lazymig-stream"); err == nil {
			k.via, err = st.keep(keptVia+stream, f)
		}
	}
	if err != nil {
		e.close()
		return err
	}
	st.relay.addOut(stream, e)
	st.relay.out[stream].bytes = k
	return nil
}

// keepIn adds a stream that the tree reads.
func (st *targetStdio) keepIn(stream uint32, e *streamEnd) error {
	k := &keptQueue{stream: stream}
	err := st.record()
	k.rec = st.rec
	var f *os.File
	if err == nil {
		f, err = bothEnds("lazymig-stream")
	}
	if err == nil {
		k.pipe, err = st.keep(keptPipe+stream, f)
	}
	if err != nil {
		e.close()
		return err
	}
	st.relay.addIn(stream, e)
	st.relay.in[stream].kept = k
	return nil
}

// resumeStdio goes on where another carrier was killed, with what the guardian has; it takes kept over. over are streams whose ends the guardian is to drop.
func resumeStdio(kept map[uint32]*os.File) (st *targetStdio, over []uint32, err error) {
	st = &targetStdio{relay: newRelay(), ours: map[uint32]*os.File{}, ends: map[uint32]int{}}
	rec := kept[keptRecord]
	if rec == nil {
		err = errors.New("there is no record of them")
	} else {
		st.rec, err = openStreamRecord(rec)
	}
	for n := range uint32(maxStdio) {
		if err == nil {
			var ended bool
			if ended, err = st.resume(n, kept); ended {
				over = append(over, n)
			}
		}
	}
	for _, f := range kept {
		f.Close()
	}
	if err != nil {
		st.close()
		return nil, nil, fmt.Errorf("take over standard streams: %w", err)
	}
	return st, over, nil
}

// resume takes both directions of a stream over; ended: neither needs the tree's end any more.
func (st *targetStdio) resume(n uint32, kept map[uint32]*os.File) (ended bool, err error) {
	mem, via, pipe, ours := kept[keptFile+n], kept[keptVia+n], kept[keptPipe+n], kept[n]
	if mem == nil && pipe == nil {
		return false, nil // no stream, or one that goes elsewhere
	}
	copyOf := func(f *os.File) int {
		fd := -1
		if f != nil && err == nil {
			if fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err == nil {
				st.fds = append(st.fds, fd)
			}
		}
		return fd
	}
	// An end that is over is closed at once: whoever was killed may not have come to it.
	end := func(over bool) (e *streamEnd) {
		switch {
		case err != nil:
		case over || ours == nil:
			e, err = newStreamEnd(-1, false, false)
		default:
			e, err = st.end(n, ours, isSocket(ours))
		}
		return e
	}
	if mem != nil {
		o := newOutgoing(nil, st.relay.notify)
		k := &keptBytes{mem: copyOf(mem), via: copyOf(via), rec: st.rec, stream: n}
		how := st.rec.number(n, recordOut).Load()
		o.bytes, o.eof, o.done = k, how&outEOF != 0 || ours == nil, how&outDone != 0
		o.acked = st.rec.number(n, recordAcked).Load()
		if how == outDone && ours != nil && isSocket(ours) { // the peer wants no more: outgoing.finish may not have come to tell the tree
			_ = unix.Shutdown(int(ours.Fd()), unix.SHUT_RD) // again it changes nothing
		}
		o.end = end(o.eof || o.done)
		if err == nil {
			err = o.found(k)
		}
		st.relay.out[n] = o
	}
	if pipe != nil {
		i := newIncoming(nil, st.relay.notify)
		k := &keptQueue{pipe: copyOf(pipe), rec: st.rec, stream: n}
		how := st.rec.number(n, recordIn).Load()
		i.kept, i.closed, i.refused = k, how&inClosed != 0, how&inRefused != 0
		i.end = end(i.closed || i.refused)
		if err == nil {
			i.written, err = k.found()
		}
		if !i.closed && ours == nil {
			i.refused = true
		}
		st.relay.in[n] = i
	}
	return ours != nil && st.ends[n] == 0, err
}

// found is what another carrier had read.
func (o *outgoing) found(k *keptBytes) error {
	var fi unix.Stat_t
	if err := unix.Fstat(k.mem, &fi); err != nil {
		return fmt.Errorf("look at what was read: %w", err)
	}
	o.have = uint64(fi.Size)
	if k.via >= 0 {
		n, err := k.settle(o.have)
		if err != nil {
			return fmt.Errorf("take what was read: %w", err)
		}
		o.have += uint64(n)
	}
	o.acked = min(o.acked, o.have)
	o.sent, k.punched = o.acked, o.acked&^pageMask
	return nil
}

// found is how many bytes another carrier has passed on. The others in the queue are thrown away.
func (k *keptQueue) found() (uint64, error) {
	left, err := readable(k.pipe)
	if err != nil {
		return 0, err
	}
	passed := k.rec.passed(k.stream, left)
	k.rec.pass(k.stream, passed, 0)
	for p := make([]byte, streamPiece); left > 0; {
		n, err := unix.Read(k.pipe, p[:min(left, len(p))])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("empty queue: %w", err)
		}
		left -= max(n, 0)
	}
	step("found")
	return passed, nil
}

func isSocket(f *os.File) bool {
	var fi unix.Stat_t
	return unix.Fstat(int(f.Fd()), &fi) == nil && fi.Mode&unix.S_IFMT == unix.S_IFSOCK
}
