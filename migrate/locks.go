package migrate

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// posixLock is a POSIX lock of the frozen tree, with a copy of a descriptor of its file. It dies with the tree at drained, while flock and OFD
// locks live on with the copies; so it is taken again, as an OFD lock of the source's process.
type posixLock struct {
	file *os.File
	lk   unix.Flock_t
}

// posixLocks reads the "lock:" lines of a descriptor (Documentation/filesystems/proc.rst), such as
//
//	lock:	1: POSIX  ADVISORY  WRITE 1234 fd:01:5678 0 EOF
func posixLocks(fdinfo io.Reader) ([]unix.Flock_t, error) {
	var all []unix.Flock_t
	sc := bufio.NewScanner(fdinfo)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 9 || f[0] != "lock:" || f[2] != "POSIX" {
			continue
		}
		lk := unix.Flock_t{Type: unix.F_RDLCK}
		if f[4] == "WRITE" {
			lk.Type = unix.F_WRLCK
		}
		var err error
		if lk.Start, err = strconv.ParseInt(f[7], 10, 64); err != nil {
			return nil, fmt.Errorf("read lock %q: %w", sc.Text(), err)
		}
		if f[8] != "EOF" {
			end, err := strconv.ParseInt(f[8], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("read lock %q: %w", sc.Text(), err)
			}
			lk.Len = end - lk.Start + 1
		}
		all = append(all, lk)
	}
	return all, sc.Err()
}

// retake takes locks again after the tree's death. What somebody else has taken in between is told.
func retake(locks []posixLock) error {
	var errs []error
	for _, l := range locks {
		if err := unix.FcntlFlock(l.file.Fd(), unix.F_OFD_SETLK, &l.lk); err != nil {
			name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", l.file.Fd())) // for people
			errs = append(errs, fmt.Errorf("take lock of %s from %d on again: somebody else has it now: %w", name, l.lk.Start, err))
		}
	}
	return errors.Join(errs...)
}
