package lazyfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// window is a file of fixed size that holds the writes which the tree has been told to be done and the source has not: a ring of records, in the order in which they were taken. It is
// written by pwrite and never synced: it need outlive this process, not the machine. A record counts from when its header is there, which is written
// behind its contents; both are summed. All that is after the first header that is not the next one's is not there.
//
//	0, 512   where the oldest record is, and its number; the valid one of the two with the greater number counts
//	4096     the ring
//
// A record that is done while an older one is not is marked: behind its header stands its number, else 0.
type window struct {
	f    *os.File
	size uint64 // of the ring
	head uint64 // the oldest record; positions only grow, modulo size they are places in the ring
	tail uint64
	next uint64 // number of the record at tail
}

const (
	windowSize  = 16 << 20
	windowStart = 4096
	recordHead  = 128 // bytes of a header; records begin at multiples of it
	padding     = 1<<32 - 1
)

// kept is a record.
type keptWrite struct {
	seq                       uint64
	number, node, handle, off uint64
	flags, uid, gid           uint32
	b                         []byte
	at, end                   uint64 // where it begins, and the next one
	marked                    bool   // as done
}

var windowSum = crc32.MakeTable(crc32.Castagnoli)

// newWindow makes an empty one. All its space is taken at once: there is none to be missed later.
func newWindow(path string, size uint64) (*window, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make window for writes: %w", err)
	}
	w := &window{f: f, size: size, next: 1}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Fallocate(int(f.Fd()), 0, 0, int64(windowStart+size))
	}
	if err == nil {
		err = w.release(0, 1)
	}
	if err != nil {
		_, _ = f.Close(), os.Remove(path)
		return nil, fmt.Errorf("make window for writes: %w", err)
	}
	return w, nil
}

// room says whether a record of n bytes has its place.
func (w *window) room(n int) bool {
	skip, need := w.place(n)
	return w.tail+skip+need-w.head <= w.size
}

// place is how many bytes a record of n takes, after what it leaves free at the ring's end.
func (w *window) place(n int) (skip, need uint64) {
	need = recordHead + (uint64(n)+recordHead-1)/recordHead*recordHead
	if left := w.size - w.tail%w.size; left < need {
		skip = left
	}
	return skip, need
}

// add writes a record, for which there is room.
func (w *window) add(r *keptWrite) error {
	skip, need := w.place(len(r.b))
	if skip > 0 {
		if err := w.put(w.tail, &keptWrite{seq: w.next}, padding, 0); err != nil {
			return err
		}
	}
	at := w.tail + skip
	r.seq, r.at, r.end = w.next, at, at+need
	if _, err := w.f.WriteAt(r.b, int64(windowStart+at%w.size+recordHead)); err != nil {
		return fmt.Errorf("keep write: %w", err)
	}
	if err := w.put(at, r, uint32(len(r.b)), crc32.Checksum(r.b, windowSum)); err != nil {
		return err
	}
	w.tail, w.next = r.end, w.next+1
	return nil
}

func (w *window) put(at uint64, r *keptWrite, n, sum uint32) error {
	b := make([]byte, 0, recordHead)
	for _, v := range []uint64{r.seq, at, r.number, r.node, r.handle, r.off} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	for _, v := range []uint32{r.flags, r.uid, r.gid, n, sum} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, windowSum))
	b = binary.LittleEndian.AppendUint64(b, 0) // no mark: an earlier record's contents may look like one
	if _, err := w.f.WriteAt(b, int64(windowStart+at%w.size)); err != nil {
		return fmt.Errorf("keep write: %w", err)
	}
	return nil
}

const headerBytes = 6*8 + 5*4 + 4

// mark notes that a record is done.
func (w *window) mark(r *keptWrite) error {
	if _, err := w.f.WriteAt(binary.LittleEndian.AppendUint64(nil, r.seq), int64(windowStart+r.at%w.size+headerBytes)); err != nil {
		return fmt.Errorf("mark kept write as done: %w", err)
	}
	return nil
}

// get reads the header at a place; false: there is none that belongs there.
func (w *window) get(at, seq uint64) (r *keptWrite, n, sum uint32, ok bool) {
	var b [headerBytes + 8]byte
	if _, err := w.f.ReadAt(b[:], int64(windowStart+at%w.size)); err != nil {
		return nil, 0, 0, false
	}
	u64 := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	u32 := func(i int) uint32 { return binary.LittleEndian.Uint32(b[48+4*i:]) }
	if crc32.Checksum(b[:headerBytes-4], windowSum) != u32(5) || u64(0) != seq || u64(1) != at {
		return nil, 0, 0, false
	}
	r = &keptWrite{seq: seq, number: u64(2), node: u64(3), handle: u64(4), off: u64(5), flags: u32(0), uid: u32(1), gid: u32(2), at: at}
	r.marked = binary.LittleEndian.Uint64(b[headerBytes:]) == seq
	return r, u32(3), u32(4), true
}

// release gives up all before the record with this number, at head. The place is used again only after that is written.
func (w *window) release(head, seq uint64) error {
	b := binary.LittleEndian.AppendUint64(nil, seq)
	b = binary.LittleEndian.AppendUint64(b, head)
	b = binary.LittleEndian.AppendUint64(b, w.size)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, windowSum))
	if _, err := w.f.WriteAt(b, int64(seq%2)*512); err != nil {
		return fmt.Errorf("give up kept writes: %w", err)
	}
	return nil
}

// openWindow reads what a daemon before this one has left. A window that can't be read is an error: writes that the tree believes to be done may be in it.
func openWindow(path string) (*window, []*keptWrite, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open window for writes: %w", err)
	}
	w := &window{f: f}
	for at := range int64(2) {
		var b [28]byte
		if _, err := f.ReadAt(b[:], at*512); err != nil {
			f.Close()
			return nil, nil, fmt.Errorf("read window for writes: %w", err)
		}
		seq, head, size := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
		if crc32.Checksum(b[:24], windowSum) == binary.LittleEndian.Uint32(b[24:]) && seq > w.next && size > 0 {
			w.next, w.head, w.size = seq, head, size
		}
	}
	if w.size == 0 {
		f.Close()
		return nil, nil, fmt.Errorf("read window for writes: no beginning: %w", io.ErrUnexpectedEOF)
	}
	w.tail = w.head
	var list []*keptWrite
	for {
		r, n, sum, ok := w.get(w.tail, w.next)
		if ok && n == padding {
			at := w.tail + w.size - w.tail%w.size
			if r, n, sum, ok = w.get(at, w.next); ok {
				w.tail = at
			}
		}
		left := w.size - w.tail%w.size
		if !ok || uint64(n) > left-recordHead || w.tail-w.head >= w.size {
			return w, list, nil
		}
		r.b = make([]byte, n)
		if _, err := f.ReadAt(r.b, int64(windowStart+w.tail%w.size+recordHead)); err != nil {
			f.Close()
			return nil, nil, fmt.Errorf("read kept write: %w", err)
		}
		if crc32.Checksum(r.b, windowSum) != sum {
			return w, list, nil // the header was there before: of the same number, from a lap that did not come to its end
		}
		r.end = w.tail + recordHead + (uint64(n)+recordHead-1)/recordHead*recordHead
		list = append(list, r)
		w.tail, w.next = r.end, w.next+1
	}
}
