package sqlite

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Header is what every database begins with.
const Header = "SQLite format 3\x00"

// Database is one that a process has open.
type Database struct {
	FD       int
	Dev, Ino uint64
	Writable bool
	Path     string // for people
}

// IsDatabase says whether a file, open for reading, is a database.
func IsDatabase(fd int) bool {
	b := make([]byte, len(Header))
	n, err := unix.Pread(fd, b, 0)
	return err == nil && n == len(b) && string(b) == Header
}

// unit divides the size of every database: it is one of pages of 512 bytes or a multiple of that.
const unit = 512

// Databases lists those that a process has open. What it closes meanwhile is passed over.
func Databases(pid int) ([]Database, error) {
	all, err := Candidates(pid)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	return slices.DeleteFunc(all, func(d Database) bool {
		fd, err := unix.PidfdGetfd(pidfd, d.FD, 0)
		if err != nil {
			return true
		}
		defer unix.Close(fd)
		return !IsDatabase(fd)
	}), nil
}

// Candidates lists the open files of a process that may be databases, by their size. None of them is read.
func Candidates(pid int) ([]Database, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	ents, err := os.ReadDir(dir)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list descriptors of process %d: %w", pid, err)
	}
	var all []Database
	for _, e := range ents {
		link := dir + "/" + e.Name()
		dev, ino, size, ok := Numbers(link)
		if !ok || size == 0 || size%unit != 0 {
			continue
		}
		fi, err := os.Lstat(link) // its bits are how the file is open
		if err != nil || fi.Mode()&0o400 == 0 {
			continue
		}
		d := Database{Dev: dev, Ino: ino, Writable: fi.Mode()&0o200 != 0}
		if d.FD, err = strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if d.Path, err = os.Readlink(link); err == nil {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Database) int { return a.FD - b.FD })
	return all, nil
}

// Numbers are device and inode number of a regular file and its size, as a process sees them. No file system is asked (AT_STATX_DONT_SYNC).
func Numbers(path string) (dev, ino uint64, size int64, ok bool) {
	var x unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_SIZE, &x)
	if err != nil || x.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, 0, 0, false
	}
	return unix.Mkdev(x.Dev_major, x.Dev_minor), x.Ino, int64(x.Size), true
}

func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// vma is a mapping that SQLite's records may lie in.
type vma struct{ start, end uint64 }

// writable lists the private mappings that a process can write.
func writable(pid int) ([]vma, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	var all []vma
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.HasPrefix(f[1], "rw") || !strings.HasSuffix(f[1], "p") {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("line of maps %q: %w", line, err)
		}
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("line of maps %q: %w", line, err)
		}
		all = append(all, vma{start, end})
	}
	return all, nil
}
