package restore

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/sqlite"
)

// Database is SQLite's record of a database that the tree has open. It gets the numbers that the file has here.
type Database struct {
	PID int32 // in the capsule
	sqlite.Record
}

// apply is before the tree runs. What it reads and writes comes from the source page by page.
func (d Database) apply() error {
	dev, ino, _, ok := sqlite.Numbers(fmt.Sprintf("/proc/%d/fd/%d", d.PID, d.FD))
	if !ok {
		return fmt.Errorf("database of process %d: descriptor %d is no file: %w", d.PID, d.FD, unix.EBADF)
	}
	if err := d.Put(sqlite.Memory(d.PID), dev, ino); err != nil {
		return fmt.Errorf("database of process %d: %w", d.PID, err)
	}
	return nil
}
