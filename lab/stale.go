package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// claim locks a new lab folder until the returned file is closed, at the latest
// when this process dies. The lock gets its name only once it is held, so that
// [sweep] never finds it free in a folder that is just being made.
func claim(dir string) (*os.File, error) {
	tmp := filepath.Join(dir, "lock.new")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make lab's lock: %w", err)
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = os.Rename(tmp, filepath.Join(dir, lockName))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock lab folder: %w", err)
	}
	return f, nil
}

const lockName = "maker.lock"

// sweep removes what makers that were killed have left in base: their hosts died
// with them, their folders did not. Nothing is mounted there outside the hosts.
func sweep(base string) error {
	dirs, err := filepath.Glob(filepath.Join(base, "lab-*"))
	if err != nil {
		return fmt.Errorf("look for old labs: %w", err)
	}
	var errs error
	for _, d := range dirs {
		f, err := os.OpenFile(filepath.Join(d, lockName), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // not a lab, or being made or removed
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = errors.Join(errs, os.RemoveAll(d))
		}
		f.Close()
	}
	return errs
}
