package migrate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/lazymig/lazymig/wire"
)

// earlyName is our own file among the images: pages that must be there before the first instruction (see package dump).
// A record is the task (4 bytes), the address (8 bytes) and 4,096 bytes, big endian.
const (
	earlyName   = "lazymig-early.bin"
	pageSize    = 4096
	earlyRecord = 12 + pageSize
	maxEarly    = 256 << 20
)

type earlyPage struct {
	Task uint32
	Addr uint64
	Data []byte
}

func encodeEarly(pages []earlyPage) []byte {
	b := make([]byte, 0, len(pages)*earlyRecord)
	for _, p := range pages {
		b = binary.BigEndian.AppendUint32(b, p.Task)
		b = binary.BigEndian.AppendUint64(b, p.Addr)
		b = append(b, p.Data...)
	}
	return b
}

func decodeEarly(b []byte) ([]earlyPage, error) {
	if len(b)%earlyRecord != 0 {
		return nil, fmt.Errorf("decode early pages: %d bytes are no whole number of pages", len(b))
	}
	pages := make([]earlyPage, 0, len(b)/earlyRecord)
	for ; len(b) > 0; b = b[earlyRecord:] {
		p := earlyPage{Task: binary.BigEndian.Uint32(b), Addr: binary.BigEndian.Uint64(b[4:]), Data: b[12:earlyRecord]}
		if p.Addr%pageSize != 0 || p.Addr >= 1<<47 {
			return nil, fmt.Errorf("decode early pages: address %#x", p.Addr)
		}
		pages = append(pages, p)
	}
	return pages, nil
}

// sendImages streams a directory of images, and the early pages; it returns how many bytes they are.
func sendImages(c *wire.Conn, dir string, early []byte) (int64, error) {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("send images: %w", err)
	}
	var total int64
	buf := make([]byte, 256<<10)
	for _, e := range ents {
		if !e.Type().IsRegular() || strings.HasSuffix(e.Name(), ".log") || checkImageName(e.Name()) != nil {
			continue // logs and CRIU's own leavings stay here
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return total, fmt.Errorf("send image: %w", err)
		}
		n, err := sendImage(c, e.Name(), f, buf)
		f.Close()
		total += n
		if err != nil {
			return total, fmt.Errorf("send image %s: %w", e.Name(), err)
		}
	}
	n, err := sendImage(c, earlyName, bytes.NewReader(early), buf)
	if err != nil {
		return total, fmt.Errorf("send early pages: %w", err)
	}
	return total + n, nil
}

func sendImage(c *wire.Conn, name string, f io.Reader, buf []byte) (int64, error) {
	var off int64
	for {
		n, err := io.ReadFull(f, buf)
		if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			return off, err
		}
		if n > 0 || off == 0 {
			var e wire.Encoder
			e.String(name)
			e.U64(uint64(off))
			if err := c.Send(wire.MsgImages, 0, 0, e.B, buf[:n]); err != nil {
				return off, err
			}
		}
		off += int64(n)
		if err != nil { // the end
			return off, nil
		}
	}
}

// imageSink receives what sendImages sends. The peer is not trusted: names, count and size are bounded.
type imageSink struct {
	dir   string
	files map[string]int64
	total int64
	early []byte // they stay in memory
}

func newImageSink(dir string) *imageSink { return &imageSink{dir: dir, files: map[string]int64{}} }

// piece takes one MsgImages payload.
func (s *imageSink) piece(p []byte) error {
	d := wire.NewDecoder(p)
	name, off := d.String(128), d.U64()
	data := d.Rest()
	if err := d.End(); err != nil {
		return fmt.Errorf("decode image: %w", err)
	}
	if err := checkImageName(name); err != nil {
		return err
	}
	size, known := s.files[name]
	if uint64(size) != off {
		return fmt.Errorf("image %s: piece at %d where %d is the end", name, off, size)
	}
	if !known && len(s.files) >= maxImages {
		return fmt.Errorf("image %s: more than %d images", name, maxImages)
	}
	if s.total+int64(len(data)) > maxImageBytes {
		return fmt.Errorf("image %s: more than %d bytes of images", name, int64(maxImageBytes))
	}
	if name == earlyName {
		if len(s.early)+len(data) > maxEarly {
			return fmt.Errorf("more than %d bytes of early pages", maxEarly)
		}
		s.early = append(s.early, data...)
		s.files[name] = size + int64(len(data))
		return nil
	}
	flags := os.O_WRONLY | os.O_APPEND
	if !known {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(filepath.Join(s.dir, name), flags, 0o600)
	if err != nil {
		return fmt.Errorf("store image: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("store image %s: %w", name, err)
	}
	s.files[name] = size + int64(len(data))
	s.total += int64(len(data))
	return nil
}
