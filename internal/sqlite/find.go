package sqlite

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Record is SQLite's record of an open database.
type Record struct {
	Addr     uint64 // of device and inode number, in the process
	File     uint64 // of a unixFile that refers to it
	FD       int    // that one's descriptor
	Dev, Ino uint64
}

// Found is what Search has found.
type Found struct {
	Databases []Database
	Records   []Record   // one for each that is needed
	Unknown   []Database // open for writing, and no record
}

// Layout of unixFile and sqlite3_vfs (os_unix.c, sqlite3.h) on a 64-bit host.
const (
	recordAt = 16 // unixFile: pMethod, pVfs, pInode, h
	vfsAt    = 8
	nameAt   = 24 // sqlite3_vfs: iVersion, szOsFile, mxPathname, pNext, zName
)

// Search finds the records of databases in the memory of a process. Whether the process runs meanwhile or not: what was found is looked at again by Holds.
func Search(pid int, dbs []Database) (*Found, error) {
	f := &Found{Databases: dbs}
	if len(dbs) == 0 {
		return f, nil
	}
	mem := Memory(pid)
	candidates, err := numbersIn(pid, mem, dbs)
	if err != nil {
		return nil, err
	}
	if err := f.files(pid, mem, candidates); err != nil {
		return nil, err
	}
	f.unknown()
	return f, nil
}

// unknown names what is open for writing and has no record.
func (f *Found) unknown() {
	for _, d := range f.Databases {
		if d.Writable && !f.has(d) {
			f.Unknown = append(f.Unknown, d)
		}
	}
}

// Of is what was found of some of the candidates. False: they were not all among them.
func (f *Found) Of(dbs []Database) (*Found, bool) {
	if f == nil {
		return nil, false
	}
	some := &Found{Databases: dbs}
	for _, d := range dbs {
		if !slices.ContainsFunc(f.Databases, func(c Database) bool { return c.FD == d.FD && c.Dev == d.Dev && c.Ino == d.Ino }) {
			return nil, false
		}
	}
	for _, r := range f.Records {
		if slices.ContainsFunc(dbs, func(d Database) bool { return r.Dev == d.Dev && r.Ino == d.Ino }) {
			some.Records = append(some.Records, r)
		}
	}
	some.unknown()
	return some, true
}

// numbersIn is where pairs of numbers lie.
func numbersIn(pid int, mem io.ReaderAt, dbs []Database) (map[uint64]Database, error) {
	type pair struct{ dev, ino uint64 }
	wanted := map[pair]Database{}
	devs := map[uint64]bool{}
	for _, d := range dbs {
		wanted[pair{d.Dev, d.Ino}] = d
		devs[d.Dev] = true
	}
	one := dbs[0].Dev // nearly always the only one: cheaper than a look into a map
	at := map[uint64]Database{}
	err := scan(pid, mem, func(addr, w, next uint64) {
		if w != one && (len(devs) == 1 || !devs[w]) {
			return
		}
		if d, ok := wanted[pair{w, next}]; ok {
			at[addr] = d
		}
	})
	return at, err
}

// files finds the unixFiles that refer to candidates.
func (f *Found) files(pid int, mem io.ReaderAt, candidates map[uint64]Database) error {
	if len(candidates) == 0 {
		return nil
	}
	low, high := ^uint64(0), uint64(0)
	for a := range candidates {
		low, high = min(low, a), max(high, a)
	}
	return scan(pid, mem, func(addr, w, next uint64) {
		if w < low || w > high {
			return
		}
		c, ok := candidates[w]
		if !ok || f.hasAddr(w) {
			return
		}
		for _, d := range f.Databases {
			r := Record{Addr: w, File: addr - recordAt, FD: d.FD, Dev: d.Dev, Ino: d.Ino}
			if d.Dev == c.Dev && d.Ino == c.Ino && int32(next) == int32(d.FD) && r.holds(mem) {
				f.Records = append(f.Records, r)
				return
			}
		}
	})
}

func (f *Found) hasAddr(a uint64) bool {
	return slices.ContainsFunc(f.Records, func(r Record) bool { return r.Addr == a })
}

// has says whether a database has a record. One is enough for all descriptors of a file: SQLite keeps some open that no connection has any more.
func (f *Found) has(d Database) bool {
	return slices.ContainsFunc(f.Records, func(r Record) bool { return r.Dev == d.Dev && r.Ino == d.Ino })
}

// holds says that the record is one: a unixFile of the VFS "unix" refers to it, and it has the numbers.
func (r Record) holds(mem io.ReaderAt) bool {
	var file [recordAt + 12]byte
	ne := binary.NativeEndian
	if !read(mem, r.File, file[:]) || ne.Uint64(file[recordAt:]) != r.Addr || int32(ne.Uint32(file[recordAt+8:])) != int32(r.FD) {
		return false
	}
	var vfs [nameAt + 8]byte
	var name [4]byte
	if !read(mem, ne.Uint64(file[vfsAt:]), vfs[:]) || !read(mem, ne.Uint64(vfs[nameAt:]), name[:]) || string(name[:]) != "unix" {
		return false
	}
	var pair [16]byte
	return read(mem, r.Addr, pair[:]) && ne.Uint64(pair[:]) == r.Dev && ne.Uint64(pair[8:]) == r.Ino
}

func read(mem io.ReaderAt, addr uint64, b []byte) bool {
	if addr == 0 || addr >= 1<<47 {
		return false
	}
	n, err := mem.ReadAt(b, int64(addr))
	return err == nil && n == len(b)
}

// Holds says whether all records are still what they were. The process must stand still.
func (f *Found) Holds(pid int) bool {
	return !slices.ContainsFunc(f.Records, func(r Record) bool { return !r.holds(Memory(pid)) })
}

// Put writes new numbers into the record. The process must stand still.
func (r Record) Put(mem interface {
	io.ReaderAt
	io.WriterAt
}, dev, ino uint64,
) error {
	if !r.holds(mem) {
		return fmt.Errorf("SQLite's record of descriptor %d is not at %#x any more: %w", r.FD, r.Addr, unix.EINVAL)
	}
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:], dev)
	binary.NativeEndian.PutUint64(b[8:], ino)
	if _, err := mem.WriteAt(b[:], int64(r.Addr)); err != nil {
		return fmt.Errorf("write SQLite's record of descriptor %d: %w", r.FD, err)
	}
	return nil
}

// Stack of a thread that is looked at, from its stack pointer.
const (
	redZone    = 128
	stackBytes = 16 << 10
)

// asks are the calls between which and the comparison of what they return SQLite makes no other (findInodeInfo, fileHasMoved); -1: it is in none.
var asks = []int{-1, unix.SYS_STAT, unix.SYS_FSTAT, unix.SYS_LSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX}

// Busy says whether a thread has just asked for the numbers of a database and has them on its stack, so that it may be about to compare them. The
// process must stand still.
func (f *Found) Busy(pid int) (bool, error) {
	if len(f.Databases) == 0 {
		return false, nil
	}
	mem := Memory(pid)
	tids, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return false, fmt.Errorf("list threads of process %d: %w", pid, err)
	}
	ne := binary.NativeEndian
	for _, t := range tids {
		nr, sp, err := standsAt(fmt.Sprintf("/proc/%d/task/%s/syscall", pid, t.Name()))
		if gone(err) {
			continue
		}
		if err != nil {
			return false, err
		}
		if !slices.Contains(asks, nr) {
			continue
		}
		start := (sp - redZone) &^ 7
		var b [stackBytes]byte
		n, _ := mem.ReadAt(b[:], int64(start)) // a stack that is shorter ends it
		for i := 0; i+16 <= n; i += 8 {
			dev, ino := ne.Uint64(b[i:]), ne.Uint64(b[i+8:])
			for _, d := range f.Databases {
				if d.Dev == dev && d.Ino == ino {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// standsAt reads "NR ARGS SP PC", or "-1 SP PC" (Documentation/filesystems/proc.rst).
func standsAt(path string) (nr int, sp uint64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(string(b))
	if len(f) < 3 {
		return 0, 0, fmt.Errorf("%s: %q: the thread does not stand still: %w", path, b, unix.EBUSY)
	}
	if nr, err = strconv.Atoi(f[0]); err == nil {
		sp, err = strconv.ParseUint(f[len(f)-2], 0, 64)
	}
	return nr, sp, err
}
