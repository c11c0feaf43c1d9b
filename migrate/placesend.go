package migrate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What follows after files were put in their places (places.go): all is taken back, or finished.

func (t *Target) readPlaces() ([]placed, error) {
	var all []placed
	err := readState(filepath.Join(t.rec.Dir, placesName), &all)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return all, err
}

// takeBack is after a switch that has failed: the copies are in the store again, and what was at their places is there.
func (t *Target) takeBack() error {
	all, err := t.readPlaces()
	if err != nil {
		return err
	}
	for _, x := range slices.Backward(all) {
		if err := t.takeBackOne(&x); err != nil {
			return fmt.Errorf("take %s back from its place: %w", x.Path, err)
		}
	}
	return t.forgetPlaces()
}

func (t *Target) takeBackOne(x *placed) error {
	from := t.from(x)
	if x.here() {
		flags := uint(unix.RENAME_EXCHANGE)
		if !x.Had {
			_ = unix.Unlink(from) // the place to mount at, if that was made: one of both, and empty
			_ = unix.Rmdir(from)
			flags = unix.RENAME_NOREPLACE
		}
		if err := unix.Renameat2(unix.AT_FDCWD, x.Path, unix.AT_FDCWD, from, flags); err != nil {
			return err
		}
	}
	if x.Temp != "" {
		if err := os.Remove(x.Temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, dir := range slices.Backward(x.Made) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.log.Warn("a directory that was made stays", "path", dir, "err", err) // somebody has put something there
		}
	}
	return nil
}

// finishPlaces is when the tree lives there: what was there before goes. Not the place where it lies: the tree has its own mounted over that, and would lose it. What has changed
// since it was compared is kept, and named.
func (t *Target) finishPlaces() (kept []string, err error) {
	all, err := t.readPlaces()
	if err != nil {
		return nil, err
	}
	for _, x := range all {
		if x.Temp != "" {
			if err := os.RemoveAll(x.Temp); err != nil {
				return kept, fmt.Errorf("remove what was at %s: %w", x.Path, err)
			}
			continue
		}
		if !x.Had || !x.here() {
			continue
		}
		from := t.copyOf(x.Path)
		if x.Since != 0 && changedSince(from, x.Since) {
			kept = append(kept, x.Path+": what was there has changed just before, and is kept at "+from)
			t.log.Warn("what was at a path has changed just before it was exchanged", "path", x.Path, "kept", from)
			continue
		}
		if err := emptyOut(from); err != nil {
			return kept, fmt.Errorf("remove what was at %s: %w", x.Path, err)
		}
	}
	return kept, t.forgetPlaces()
}

// changedSince says whether anything in a tree may have changed after a time.
func changedSince(dir string, since int64) bool {
	const tick = int64(20 * time.Millisecond) // the kernel's clock for times of files may be that late
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err == nil && p != dir && stampOf(p).ctime >= since-tick { // its own is that of the rename
			err = unix.EBUSY
		}
		return err
	})
	return err != nil
}

func emptyOut(dir string) error {
	ents, err := os.ReadDir(dir)
	if errors.Is(err, unix.ENOTDIR) {
		return nil // a file: it stays below the one that is used
	}
	for _, e := range ents {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

func (t *Target) forgetPlaces() error {
	if err := os.Remove(filepath.Join(t.rec.Dir, placesName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove where files were put: %w", err)
	}
	return nil
}
