package remotefs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

var zeroBlock [wire.FileBlock]byte

// Digest is a hash of what a file has from off (a multiple of wire.FileBlock) for n bytes, less at the end of the file. Where a file has
// holes does not count, only that it reads as zeros there: two file systems have holes at different places. Each block of wire.FileBlock
// bytes that is not all zeros enters SHA-256 with its number and its length; a file of 1 TB with little in it takes no time.
func Digest(fd int, off, n int64) (sum [wire.FileSumSize]byte, err error) {
	h := sha256.New()
	p := readBufs.Get().(*[]byte)
	defer readBufs.Put(p)
	var head [12]byte
	for end := off + n; off < end; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole up to the end
			data = end
		case errors.Is(err, unix.EINVAL): // a file system that knows no holes
			data = off
		case err != nil:
			return sum, fmt.Errorf("find data: %w", err)
		}
		if off = max(off, data&^(wire.FileBlock-1)); off >= end {
			break
		}
		b := (*p)[:min(int64(len(*p)), end-off)]
		got := 0
		for got < len(b) {
			k, err := retry(func() (int, error) { return unix.Pread(fd, b[got:], off+int64(got)) })
			if err != nil {
				return sum, fmt.Errorf("read for a digest: %w", err)
			}
			if k == 0 {
				break
			}
			got += k
		}
		for b = b[:got]; len(b) > 0; {
			block := b[:min(len(b), wire.FileBlock)]
			if !bytes.Equal(block, zeroBlock[:len(block)]) {
				binary.BigEndian.PutUint64(head[:], uint64(off/wire.FileBlock))
				binary.BigEndian.PutUint32(head[8:], uint32(len(block)))
				h.Write(head[:])
				h.Write(block)
			}
			b, off = b[len(block):], off+int64(len(block))
		}
		if got == 0 || got%wire.FileBlock != 0 { // the end of the file
			break
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}
