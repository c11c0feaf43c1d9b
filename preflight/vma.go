package preflight

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// vma is one mapping.
type vma struct {
	start, end uint64
	perms      string
	offset     uint64
	key        inodeKey
	path       string
	flags      string // VmFlags, empty when read from maps
	present    uint64 // Rss and Swap in bytes, likewise
}

func (v *vma) shared() bool   { return len(v.perms) == 4 && v.perms[3] == 's' }
func (v *vma) writable() bool { return len(v.perms) == 4 && v.perms[1] == 'w' }

// has looks for one of VmFlags' two-letter words.
func (v *vma) has(flag string) bool {
	for f := range strings.FieldsSeq(v.flags) {
		if f == flag {
			return true
		}
	}
	return false
}

// mayWrite also counts a mapping which mprotect could make writable.
func (v *vma) mayWrite() bool { return v.writable() || v.has("mw") }

// readVMAs parses maps or smaps.
func readVMAs(path string) ([]vma, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	v, err := parseVMAs(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return v, nil
}

func parseVMAs(r io.Reader) ([]vma, error) {
	var out []vma
	br := bufio.NewReaderSize(r, 256<<10)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			switch c := line[0]; {
			case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
				v, ok := parseVMA(bytes.TrimSuffix(line, []byte{'\n'}))
				if !ok {
					return nil, fmt.Errorf("parse mapping %q", line)
				}
				out = append(out, v)
			case len(out) > 0 && (bytes.HasPrefix(line, []byte("Rss:")) || bytes.HasPrefix(line, []byte("Swap:"))):
				_, v, _ := bytes.Cut(line, []byte{':'})
				out[len(out)-1].present += kib(string(v))
			case c == 'V' && bytes.HasPrefix(line, []byte("VmFlags:")) && len(out) > 0:
				out[len(out)-1].flags = string(bytes.TrimSpace(line[8:]))
			}
		}
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// parseVMA reads "start-end perms offset maj:min inode   path".
func parseVMA(line []byte) (vma, bool) {
	var v vma
	var f [5]string
	rest := string(line)
	for i := range f {
		var ok bool
		f[i], rest, ok = strings.Cut(rest, " ")
		if !ok && i < 4 {
			return v, false
		}
	}
	v.path = strings.TrimLeft(rest, " ")
	a, b, ok := strings.Cut(f[0], "-")
	if !ok {
		return v, false
	}
	var err1, err2 error
	v.start, err1 = strconv.ParseUint(a, 16, 64)
	v.end, err2 = strconv.ParseUint(b, 16, 64)
	v.perms = f[1]
	v.offset, _ = strconv.ParseUint(f[2], 16, 64)
	maj, minor, ok := strings.Cut(f[3], ":")
	if err1 != nil || err2 != nil || !ok || len(v.perms) != 4 {
		return v, false
	}
	ma, err1 := strconv.ParseUint(maj, 16, 32)
	mi, err2 := strconv.ParseUint(minor, 16, 32)
	ino, err3 := strconv.ParseUint(f[4], 10, 64)
	v.key = inodeKey{unix.Mkdev(uint32(ma), uint32(mi)), ino}
	return v, err1 == nil && err2 == nil && err3 == nil
}

// leastShared is from which size on shared memory comes lazily (package dump).
const leastShared = 1 << 20

// lazyShared says that the mapping does not keep its shared memory from coming lazily.
func (v *vma) lazyShared() bool {
	return v.shared() && (v.path == "/dev/zero (deleted)" || isMemfd(v.path)) && v.has("mw") && !v.has("lo")
}

// memoryObject says that the mapping's object is memory and nothing else: anonymous shared, memfd, SysV, tmpfs by name
// of /dev/shm. Others are files, and whoever shares them expects a file.
func (v *vma) memoryObject() bool {
	return v.shared() && v.key.ino != 0 && (strings.HasPrefix(v.path, "/dev/zero") || strings.HasPrefix(v.path, "/memfd:") ||
		strings.HasPrefix(v.path, "/SYSV") || strings.HasPrefix(v.path, "/dev/shm/") || strings.HasPrefix(v.path, "/anon_hugepage"))
}
