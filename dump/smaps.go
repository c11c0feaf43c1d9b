package dump

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
)

// MADV_ numbers (asm-generic/mman-common.h) which the kernel shows as VmFlags and CRIU keeps in VmaEntry.madv.
var madvFlags = map[string]uint{
	"rr": 1, "sr": 2, "dc": 10, "mg": 12, "hg": 14, "nh": 15, "dd": 16, "wf": 18,
}

// mapping is one entry of smaps.
type mapping struct {
	start, end uint64
	prot       uint32
	private    bool
	anonymous  bool // no file
	offset     uint64
	dev        string // MAJOR:MINOR
	inode      uint64
	guarded    bool   // a shareable one with pages that were made guards
	name       string // [heap], [stack], [anon:…], a path
	flags      []string
	rss, swap  uint64 // bytes
	huge       bool   // has transparent huge pages
	text       []byte // the two lines of it that CRIU reads
}

// snapshot is what smaps of one process said.
type snapshot struct {
	mappings []mapping
	maps     []byte     // its header lines: the same bytes as /proc/PID/maps has
	locked   uint64     // VmLck, kB
	flags    []vmaFlags // of the kernel, read before smaps; nil where there is no BPF iterator
	frozen   bool       // taken while the tree was frozen
	blocks   []HugeRange
}

// takeSnapshot reads smaps, which walks the page tables: about 10 ms for each GB of small pages. r may be nil.
func takeSnapshot(r *flagReader, pid int) (*snapshot, error) {
	locked, err := statusKB(pid, "VmLck")
	if err != nil {
		return nil, fmt.Errorf("read status of process %d: %w", pid, err)
	}
	var flags []vmaFlags
	if r != nil { // before smaps: what changes while that is read is seen at the next look
		if flags, err = r.read(pid); err != nil {
			return nil, err
		}
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, fmt.Errorf("read smaps of process %d: %w", pid, err)
	}
	s, err := parseSmaps(b)
	if err != nil {
		return nil, fmt.Errorf("parse smaps of process %d: %w", pid, err)
	}
	s.locked, s.flags = locked, flags
	if err := s.findGuards(pid); err != nil {
		return nil, err
	}
	return s, s.findHuge(pid)
}

func parseSmaps(b []byte) (*snapshot, error) {
	s := &snapshot{maps: make([]byte, 0, len(b)/8)}
	for line := range bytes.Lines(b) {
		if isHeader(line) {
			m, err := parseHeader(string(line))
			if err != nil {
				return nil, err
			}
			m.text = append(m.text, line...)
			s.mappings = append(s.mappings, m)
			s.maps = append(s.maps, line...)
			continue
		}
		if len(s.mappings) == 0 {
			return nil, fmt.Errorf("line %q: %w", line, unix.EINVAL)
		}
		m := &s.mappings[len(s.mappings)-1]
		key, value, _ := strings.Cut(string(line), ":")
		switch key {
		case "Rss":
			m.rss = kilobytes(value)
		case "Swap":
			m.swap = kilobytes(value)
		case "AnonHugePages":
			m.huge = kilobytes(value) > 0
		case "VmFlags":
			m.flags = strings.Fields(value)
			m.text = append(m.text, line...)
		}
	}
	return s, nil
}

// isHeader tells "7f00-7f01 rw-p …" from "Rss: …": as CRIU does, by the range at its start.
func isHeader(line []byte) bool {
	i := 0
	for i < len(line) && ishex(line[i]) {
		i++
	}
	return i > 0 && i < len(line) && line[i] == '-'
}

func ishex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }

func parseHeader(line string) (mapping, error) {
	bad := fmt.Errorf("line %q: %w", line, unix.EINVAL)
	f := strings.Fields(line)
	if len(f) < 5 || len(f[1]) != 4 {
		return mapping{}, bad
	}
	lo, hi, ok := strings.Cut(f[0], "-")
	if !ok {
		return mapping{}, bad
	}
	start, err := strconv.ParseUint(lo, 16, 64)
	if err != nil {
		return mapping{}, bad
	}
	end, err := strconv.ParseUint(hi, 16, 64)
	if err != nil || end <= start {
		return mapping{}, bad
	}
	offset, err := strconv.ParseUint(f[2], 16, 64)
	if err != nil {
		return mapping{}, bad
	}
	inode, err := strconv.ParseUint(f[4], 10, 64)
	if err != nil {
		return mapping{}, bad
	}
	m := mapping{
		start: start, end: end, private: f[1][3] == 'p', anonymous: f[3] == "00:00" && inode == 0,
		offset: offset, dev: f[3], inode: inode,
	}
	for i, bit := range []uint32{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		if f[1][i] != '-' {
			m.prot |= bit
		}
	}
	if len(f) > 5 {
		m.name = strings.Join(f[5:], " ")
	}
	return m, nil
}

func kilobytes(s string) uint64 {
	f := strings.Fields(s)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseUint(f[0], 10, 54)
	return n << 10
}

func (m *mapping) has(flag string) bool {
	return slices.Contains(m.flags, flag)
}

// hidable says whether CRIU does not have to see the mapping: see the package's doc.
func (m *mapping) hidable() bool {
	if !m.private || !m.anonymous || len(m.flags) == 0 {
		return false
	}
	if m.name != "" && m.name != "[heap]" && !strings.HasPrefix(m.name, "[anon:") {
		return false // [stack], [vdso], [vvar], [vsyscall], [uprobes] and what a later kernel may add
	}
	return !m.fixed()
}

// fixed says whether CRIU's restore would not register it with a userfaultfd, or has to see it for another reason.
// Not "uw": a tree with a userfaultfd of its own is refused, so this one is package ahead's, which ends with this process.
func (m *mapping) fixed() bool {
	return slices.ContainsFunc([]string{"lo", "ht", "dp", "ss", "pf", "io", "gd", "um", "ui"}, m.has)
}

// vma is the mapping as CRIU would have written it.
func (m *mapping) vma() images.VMA {
	v := images.VMA{
		Start: m.start, End: m.end, Prot: m.prot,
		Flags: images.MapPrivate | images.MapAnonymous, Status: images.StatusRegular | images.StatusAnonPrivate,
	}
	if !m.private {
		v.Flags, v.Status = images.MapShared|images.MapAnonymous, images.StatusRegular|images.StatusAnonShared
		v.Object, v.Offset = m.inode, m.offset
	}
	if m.name == "[heap]" {
		v.Status |= images.StatusHeap
	}
	if m.has("nr") {
		v.Flags |= images.MapNoReserve
	}
	for _, f := range m.flags {
		if n, ok := madvFlags[f]; ok {
			v.Madv |= 1 << n
		}
	}
	return v
}

// filtered is what CRIU is shown.
func (s *snapshot) filtered(objects objects) []byte {
	var b []byte
	for i := range s.mappings {
		if !objects.hides(&s.mappings[i]) {
			b = append(b, s.mappings[i].text...)
		}
	}
	return b
}

// hidden lists what it is not shown.
func (s *snapshot) hidden(objects objects) []images.VMA {
	var list []images.VMA
	for i := range s.mappings {
		if objects.hides(&s.mappings[i]) {
			v := s.mappings[i].vma()
			if o := objects[v.Object]; v.Object != 0 && o.name != "" {
				v.Flags, v.Status, v.Object = images.MapShared, images.StatusRegular|images.StatusMemfd, uint64(o.file)
			}
			list = append(list, v)
		}
	}
	return list
}

// current says whether the frozen process still has the mappings of the snapshot, as far as is cheap to see: with a
// BPF iterator that is everything, without one the flags are left to recheck.
func (s *snapshot) current(r *flagReader, pid int) (bool, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return false, fmt.Errorf("read maps of process %d: %w", pid, err)
	}
	locked, err := statusKB(pid, "VmLck")
	if err != nil {
		return false, fmt.Errorf("read status of process %d: %w", pid, err)
	}
	if locked != s.locked || !bytes.Equal(maps, s.maps) {
		return false, nil
	}
	if r == nil {
		return true, nil
	}
	flags, err := r.read(pid)
	if err != nil {
		return false, err
	}
	return slices.Equal(flags, s.flags), nil
}

// sameNature compares what decides over bytes and what CRIU keeps: whether a mapping is hidden, and its flags.
func (s *snapshot) sameNature(now *snapshot) error {
	if !bytes.Equal(s.maps, now.maps) {
		return fmt.Errorf("maps differ: %w", ErrChanged)
	}
	for i := range s.mappings {
		a, b := &s.mappings[i], &now.mappings[i]
		was, is := a.hidable() || a.shareable(), b.hidable() || b.shareable()
		if was != is || is && a.vma() != b.vma() {
			return fmt.Errorf("%#x-%#x: flags were %v, are %v: %w", a.start, a.end, a.flags, b.flags, ErrChanged)
		}
	}
	return nil
}
