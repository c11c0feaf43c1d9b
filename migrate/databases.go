package migrate

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/sqlite"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/restore/detach"
)

// SQLite knows databases by device and inode number (package internal/sqlite). Its records are found in the tree's memory while it runs, looked at again when
// it is frozen, beside the transfer, and get the numbers that the files have on the target before the tree's first instruction there.

const maxDatabases = 100_000

// databases are found before the freeze.
type databases struct {
	found map[int]*sqlite.Found // by PID
	done  chan struct{}         // closed when the frozen tree has been looked at
	list  []restore.Database
	locks []detach.Lock // that CRIU loses; PIDs are those in the tree's namespace
	err   error
}

// findDatabases is while the tree runs.
func (s *Source) findDatabases() error {
	s.dbs.found = map[int]*sqlite.Found{}
	for _, t := range s.dump.Tasks() {
		began := time.Now()
		dbs, err := sqlite.Databases(t.PID)
		if err == nil && len(dbs) > 0 {
			var f *sqlite.Found
			if f, err = sqlite.Search(t.PID, dbs); err == nil {
				s.dbs.found[t.PID] = f
				s.log.Info("databases", "process", t.PID, "open", len(dbs), "records", len(f.Records), "ms", ms(time.Since(began)))
				s.tellUnknown(f)
			}
		}
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("look for databases: %w", err)
		}
	}
	return nil
}

func (s *Source) tellUnknown(f *sqlite.Found) {
	var paths []string
	for _, d := range f.Unknown {
		if !slices.Contains(paths, d.Path) {
			paths = append(paths, d.Path)
			s.notice("SQLite database %s is open for writing, and what the process remembers of it is not found: if it is SQLite that has it open, do not let it open the database again", d.Path)
		}
	}
}

// recheckDatabases begins to look at the frozen tree.
func (s *Source) recheckDatabases() {
	s.dbs.done = make(chan struct{})
	go func() { // awaited by frozenDatabases
		defer close(s.dbs.done)
		for _, t := range s.result.Tasks {
			if s.dbs.err = s.dbs.recheck(t.PID, t.ID); s.dbs.err != nil {
				s.dbs.err = fmt.Errorf("databases of process %d: %w", t.PID, s.dbs.err)
				return
			}
			locks, err := detach.MappedLocks(t.PID)
			if err != nil {
				s.dbs.err = err
				return
			}
			for _, l := range locks {
				l.PID = int(t.ID)
				s.dbs.locks = append(s.dbs.locks, l)
			}
		}
	}()
}

// frozenDatabases are the records of the frozen tree, and the locks that CRIU loses.
func (s *Source) frozenDatabases() ([]restore.Database, []detach.Lock, error) {
	<-s.dbs.done
	return s.dbs.list, s.dbs.locks, s.dbs.err
}

func (b *databases) recheck(pid int, id uint32) error {
	dbs, err := sqlite.Databases(pid)
	if err != nil || len(dbs) == 0 {
		return err
	}
	f := b.found[pid]
	ok := f != nil && slices.Equal(f.Databases, dbs)
	if !ok || !f.Holds(pid) { // opened or closed since
		if f, err = sqlite.Search(pid, dbs); err != nil {
			return err
		}
	}
	busy, err := f.Busy(pid)
	if err != nil {
		return err
	}
	if busy {
		return fmt.Errorf("one is just being opened or written for the first time; try again: %w", unix.EAGAIN)
	}
	for _, r := range f.Records {
		b.list = append(b.list, restore.Database{PID: int32(id), Record: r})
	}
	return nil
}
