package remotefs

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// A JournalFile is a Journal in a file, for when every process that has descriptors of the tree's files is killed at once: it says of each descriptor how its file is
// found again (journalload.go). What write(2) has taken outlives the process; it need not outlive the host, so nothing is synced.
//
// The file is a sequence of entries: length 4, CRC-32C 4 (of what follows), place, message. Of the last one a part may be missing: who wrote it was killed before
// the client got an answer.
type JournalFile struct {
	path string
	root string // path of the exported root
	full func() // called once, when the file has become long; it does not block

	mu    sync.Mutex
	f     *os.File
	whole bool
	size  int64
	limit int64
	told  bool
}

// journalLength is how much may be written after what there was: then a new file is due.
const journalLength = 64 << 20

// maxJournalEntry is more than any message with its place has.
const maxJournalEntry = journalPiece + 64<<10

// NewJournalFile makes one at path, where it replaces another when all that there is has been written. full is called, with locks held, when it should be replaced itself.
func (s *Server) NewJournalFile(path string, full func()) (*JournalFile, error) {
	root, err := s.RootPath()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make journal of files: %w", err)
	}
	return &JournalFile{path: path, root: root, full: full, f: f}, nil
}

// RootPath is where this process sees the exported root.
func (s *Server) RootPath() (string, error) {
	n, err := s.tab.get(wire.FileRootNode)
	if err != nil {
		return "", fmt.Errorf("find exported root: %w", err)
	}
	defer s.tab.put(n)
	return pathOf(n.fd)
}

func pathOf(fd int) (string, error) {
	p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", fmt.Errorf("find path of a descriptor: %w", err)
	}
	return p, nil
}

// Send implements Journal.
func (j *JournalFile) Send(b []byte, fds ...int) error {
	var e wire.Encoder
	e.U64(0) // length and checksum
	e.Bool(len(fds) > 0)
	if len(fds) > 0 {
		p, err := placeOf(fds[0], j.root)
		if err != nil {
			return fmt.Errorf("write journal of files: %w", err)
		}
		p.put(&e)
	}
	e.B = append(e.B, b...)
	head := wire.Encoder{}
	head.U32(uint32(len(e.B) - 8))
	head.U32(crc32.Checksum(e.B[8:], castagnoli))
	copy(e.B, head.B)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return fmt.Errorf("write journal of files: %w", os.ErrClosed)
	}
	if _, err := j.f.Write(e.B); err != nil { // part of it may be there: nothing may follow
		j.f.Close()
		j.f = nil
		return fmt.Errorf("write journal of files: %w", errors.Join(err, os.Remove(j.name())))
	}
	j.size += int64(len(e.B))
	switch {
	case b[0] == journalWhole && !j.whole:
		if err := os.Rename(j.name(), j.path); err != nil {
			return fmt.Errorf("write journal of files: %w", err)
		}
		j.whole, j.limit = true, j.size+journalLength
	case j.whole && j.size > j.limit && !j.told:
		j.told = true
		j.full()
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (j *JournalFile) name() string {
	if j.whole {
		return j.path
	}
	return j.path + ".new"
}

// Close ends it; the file stays.
func (j *JournalFile) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f != nil {
		j.f.Close()
		j.f = nil
	}
}

// place is how a file is found again: by a path, if what is there is the same.
type place struct {
	path  string // below the exported root; empty: it has none
	flags uint32 // of a handle
	file  identity
}

// identity tells a file from one that has got its number after its end: by the time of its birth, or else by what an NFS server would know it by. A file that
// has neither can't be found again.
type identity struct {
	key    key
	mode   uint32 // type bits
	born   unix.StatxTimestamp
	handle string
}

func identityOf(fd int) (i identity, err error) {
	var st unix.Statx_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID | unix.STATX_BTIME
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_SYNC_AS_STAT|unix.AT_NO_AUTOMOUNT, mask, &st); err != nil {
		return i, fmt.Errorf("statx: %w", err)
	}
	i = identity{key: keyIn(&st), mode: uint32(st.Mode) & unix.S_IFMT}
	if st.Mask&unix.STATX_BTIME != 0 && st.Btime.Sec != 0 { // 0: of a file that mkfs made, on ext4
		i.born = st.Btime
	} else if h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH); err == nil {
		i.handle = string(h.Bytes())
	}
	return i, nil
}

// same says that it is certainly the same file; a window into the kernel has one root, whatever there is to know of it.
func (i identity) same(x identity, hidden bool) bool {
	sure := hidden || i.born != unix.StatxTimestamp{} || i.handle != ""
	return sure && i == x
}

func placeOf(fd int, root string) (p place, err error) {
	if p.file, err = identityOf(fd); err != nil {
		return p, err
	}
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return p, fmt.Errorf("read flags: %w", err)
	}
	p.flags = uint32(fl & keptFlags)
	full, err := pathOf(fd)
	if err != nil {
		return p, err
	}
	p.path = below(root, full)
	return p, nil
}

// below is a path as seen from root; empty: it does not lie there.
func below(root, full string) string {
	if full == root {
		return "."
	}
	rel, ok := strings.CutPrefix(full, strings.TrimSuffix(root, "/")+"/")
	if !ok {
		return ""
	}
	return rel
}

func (p *place) put(e *wire.Encoder) {
	e.String(p.path)
	e.U32(p.flags)
	e.U64(p.file.key.dev)
	e.U64(p.file.key.ino)
	e.U64(p.file.key.mnt)
	e.U32(p.file.mode)
	e.I64(p.file.born.Sec)
	e.U32(p.file.born.Nsec)
	e.String(p.file.handle)
}

func (p *place) get(d *wire.Decoder) {
	p.path = d.String(1 << 16)
	p.flags = d.U32()
	p.file.key = key{dev: d.U64(), ino: d.U64(), mnt: d.U64()}
	p.file.mode = d.U32()
	p.file.born = unix.StatxTimestamp{Sec: d.I64(), Nsec: d.U32()}
	p.file.handle = d.String(1 << 10)
}
