package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"
)

// Magic numbers (criu/include/magic.h of CRIU 4.2).
const (
	magicCommon    = 0x54564319
	magicService   = 0x55105940
	magicInventory = 0x58313116
	magicPstree    = 0x50273030
	magicCore      = 0x55053847
	magicMM        = 0x57492820
	magicPagemap   = 0x56084025
	magicFiles     = 0x56303138
	magicFS        = 0x51403912
	magicRemap     = 0x59133954
	magicMemfd     = 0x48453499
)

// maxEntry bounds one message, maxImage one image that is read whole.
const (
	maxEntry = 64 << 20
	maxImage = 256 << 20
)

// ErrFormat says that an image is not what it should be.
var ErrFormat = errors.New("malformed image")

// image is a parsed image file: the magic numbers as they are, then the entries' bytes.
type image struct {
	head    []byte
	magic   uint32
	entries [][]byte
}

func readImage(path string, magic uint32) (*image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxImage+1))
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", path, err)
	}
	im, err := parseImage(b, true)
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", path, err)
	}
	if im.magic != magic {
		return nil, fmt.Errorf("read image %s: magic %#x instead of %#x: %w", path, im.magic, magic, ErrFormat)
	}
	return im, nil
}

// parseImage splits an image. With entries false only the magic is looked at (raw data may follow).
func parseImage(b []byte, entries bool) (*image, error) {
	if len(b) > maxImage {
		return nil, fmt.Errorf("more than %d bytes: %w", maxImage, ErrFormat)
	}
	if len(b) < 4 {
		return nil, fmt.Errorf("%d bytes: %w", len(b), ErrFormat)
	}
	im := &image{head: b[:4], magic: binary.LittleEndian.Uint32(b)}
	if im.magic == magicCommon || im.magic == magicService {
		if len(b) < 8 {
			return nil, fmt.Errorf("%d bytes: %w", len(b), ErrFormat)
		}
		im.head, im.magic = b[:8], binary.LittleEndian.Uint32(b[4:])
	}
	if !entries {
		return im, nil
	}
	for rest := b[len(im.head):]; len(rest) > 0; {
		if len(rest) < 4 {
			return nil, fmt.Errorf("entry %d: no length: %w", len(im.entries), ErrFormat)
		}
		n := binary.LittleEndian.Uint32(rest)
		if n > maxEntry || uint64(n) > uint64(len(rest)-4) {
			return nil, fmt.Errorf("entry %d: %d bytes where %d are left: %w", len(im.entries), n, len(rest)-4, ErrFormat)
		}
		im.entries = append(im.entries, rest[4:4+n])
		rest = rest[4+n:]
	}
	return im, nil
}

// newImage is one without an entry.
func newImage(magic uint32) *image {
	return &image{head: binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, magicCommon), magic), magic: magic}
}

// write replaces the file; a reader sees the old one or the new one.
func (im *image) write(path string) error {
	n := len(im.head)
	for _, e := range im.entries {
		n += 4 + len(e)
	}
	b := append(make([]byte, 0, n), im.head...)
	for _, e := range im.entries {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e)))
		b = append(b, e...)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return nil
}

// readOne reads an image of one message, or the first of several.
func readOne(path string, magic uint32, m proto.Message) (*image, error) {
	im, err := readImage(path, magic)
	if err != nil {
		return nil, err
	}
	if len(im.entries) == 0 {
		return nil, fmt.Errorf("read image %s: no entry: %w", path, ErrFormat)
	}
	if err := proto.Unmarshal(im.entries[0], m); err != nil {
		return nil, fmt.Errorf("read image %s: %w: %w", path, ErrFormat, err)
	}
	return im, nil
}

func pidImage(dir, kind string, pid uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%d.img", kind, pid))
}
