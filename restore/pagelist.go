package restore

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Lists of pages go to the guardian in memfds: they may have a million entries, and a message has room for none.

// pageEntry is one entry: 24 bytes, the fields one after the other. What about says is the list's own.
type pageEntry struct {
	task, count uint32
	addr, about uint64
}

const pageEntrySize = 24

// writePages makes a memfd of a list, each of whose entries is what entry gives.
func writePages[T any](name string, list []T, entry func(T) pageEntry) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memfd %s for %d entries: %w", name, len(list), err)
	}
	f := os.NewFile(uintptr(fd), name)
	b := make([]byte, 0, len(list)*pageEntrySize)
	for _, x := range list {
		e := entry(x)
		b = binary.NativeEndian.AppendUint32(b, e.task)
		b = binary.NativeEndian.AppendUint32(b, e.count)
		b = binary.NativeEndian.AppendUint64(b, e.addr)
		b = binary.NativeEndian.AppendUint64(b, e.about)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("write %d entries to memfd %s: %w", len(list), name, err)
	}
	return f, nil
}

// readPages reads what writePages has made, of most entries at most. A part of an entry is an error: the rest of it would be missing, and nobody would know.
func readPages[T any](f *os.File, most int64, of func(pageEntry) T) ([]T, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read list of pages: %w", err)
	}
	n := st.Size() / pageEntrySize
	if n > most || st.Size()%pageEntrySize != 0 {
		return nil, fmt.Errorf("%w: a list of pages of %d bytes, of %d entries at most", errMessage, st.Size(), most)
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, st.Size()), b); err != nil {
		return nil, fmt.Errorf("read list of %d entries: %w", n, err)
	}
	list := make([]T, 0, n)
	for ; len(b) > 0; b = b[pageEntrySize:] {
		list = append(list, of(pageEntry{
			task: binary.NativeEndian.Uint32(b), count: binary.NativeEndian.Uint32(b[4:]),
			addr: binary.NativeEndian.Uint64(b[8:]), about: binary.NativeEndian.Uint64(b[16:]),
		}))
	}
	return list, nil
}
