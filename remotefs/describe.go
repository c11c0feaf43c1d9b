package remotefs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// Describe is a hash of what a file has beside the attributes of stat: extended attributes, the target of a symbolic link, and with contents
// set what a regular file holds. fd is O_PATH. Labels of SELinux do not count: they are each host's own policy.
func Describe(fd int, mode uint32, contents bool) (sum [wire.FileSumSize]byte, err error) {
	h := sha256.New()
	field := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		h.Write(b)
	}
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	b := make([]byte, wire.MaxFileXattr)
	n, err := unix.Listxattr(path, b)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return sum, fmt.Errorf("list extended attributes: %w", err)
	}
	var names []string
	for name := range bytes.SplitSeq(b[:max(n, 0)], []byte{0}) {
		if len(name) > 0 && string(name) != "security.selinux" {
			names = append(names, string(name))
		}
	}
	slices.Sort(names)
	for _, name := range names {
		n, err := unix.Getxattr(path, name, b)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile
		}
		if err != nil {
			return sum, fmt.Errorf("read attribute %q: %w", name, err)
		}
		field([]byte(name))
		field(b[:n])
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFLNK:
		n, err := unix.Readlinkat(fd, "", b)
		if err != nil {
			return sum, fmt.Errorf("read link: %w", err)
		}
		field(b[:n])
	case unix.S_IFREG:
		if contents {
			r, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
			if err != nil {
				return sum, fmt.Errorf("open for a digest: %w", err)
			}
			defer func() { _ = unix.Close(r) }()
			d, err := Digest(r, 0, math.MaxInt64)
			if err != nil {
				return sum, err
			}
			field(d[:])
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}
