package detach

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/sqlite"
)

// SQLite knows databases by device and inode number, which are others after the switch: its records get the new ones (package internal/sqlite).

// databases are what may be one, of each process, as found while the tree ran: its memory may be large. No file is read for that: the source may not
// answer. Which of them are databases the local files tell, when the tree is stopped.
type databases map[int]*sqlite.Found

// renumber is a record that gets the numbers of a local file.
type renumber struct {
	rec  sqlite.Record
	desc *description
}

// searchStopped is how much memory of a process may be searched while the tree is stopped.
const searchStopped = 256 << 10 // KB

func databasesOf(o *Options) (databases, error) {
	pids, err := o.Tasks()
	if err != nil {
		return nil, fmt.Errorf("list processes of the tree: %w", err)
	}
	all := databases{}
	for _, pid := range pids {
		dbs, err := sqlite.Candidates(pid)
		if err == nil {
			dbs = slices.DeleteFunc(dbs, func(d sqlite.Database) bool { return d.Dev != o.Dev })
			all[pid], err = sqlite.Search(pid, dbs)
		}
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) { // it has ended
			delete(all, pid)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for databases: %w", err)
		}
	}
	return all, nil
}

// known refuses a database that somebody knows by numbers which are not found.
func known(pid int, f *sqlite.Found) error {
	var r []string
	for _, d := range f.Unknown {
		why := fmt.Sprintf("process %d has the SQLite database %s open, and what it remembers of the file's numbers, which would be others, is not found", pid, d.Path)
		if !slices.Contains(r, why) {
			r = append(r, why)
		}
	}
	if r != nil {
		return &Stuck{r}
	}
	return nil
}

// findDatabases says which records get new numbers. The new descriptions are open.
func (w *switching) findDatabases() error {
	is := map[*description]bool{}
	for _, d := range w.s.descs {
		is[d] = d.kind == regular && d.info.flags&unix.O_PATH == 0 && sqlite.IsDatabase(int(d.file.Fd()))
	}
	for _, p := range w.s.processes {
		if !p.hasMM {
			continue
		}
		var dbs []sqlite.Database
		for _, d := range p.fds {
			if is[d.desc] {
				dbs = append(dbs, sqlite.Database{
					FD: d.fd, Dev: w.s.dev, Ino: d.desc.obj.ino, Path: d.desc.obj.path,
					Writable: d.desc.info.flags&unix.O_ACCMODE != unix.O_RDONLY,
				})
			}
		}
		if err := w.recordsOf(p, dbs); err != nil {
			return fmt.Errorf("databases of process %d: %w", p.pid, err)
		}
	}
	return nil
}

func (w *switching) recordsOf(p *process, dbs []sqlite.Database) (err error) {
	if len(dbs) == 0 {
		return nil
	}
	f, ok := w.dbs[p.pid].Of(dbs)
	if !ok || !f.Holds(p.pid) { // it has opened or closed one since, or is a child that has just been made
		kb, err := strconv.Atoi(strings.TrimSuffix(statusOf(p.pid, "RssAnon"), " kB"))
		if err != nil || kb > searchStopped {
			return fmt.Errorf("they are others than a moment ago, and its memory is too large to be searched while it is stopped: %w", unix.EAGAIN)
		}
		if f, err = sqlite.Search(p.pid, dbs); err != nil {
			return err
		}
	}
	if err := known(p.pid, f); err != nil {
		return err
	}
	busy, err := f.Busy(p.pid)
	if err != nil {
		return err
	}
	if busy {
		return fmt.Errorf("one is just being opened or written for the first time: %w", unix.EAGAIN)
	}
	for _, r := range f.Records {
		i := slices.IndexFunc(p.fds, func(d descriptor) bool { return d.desc.obj.ino == r.Ino })
		p.numbers = append(p.numbers, renumber{r, p.fds[i].desc})
	}
	return nil
}

// renumber writes the new numbers.
func (p *process) renumber() error {
	for _, n := range p.numbers {
		var st unix.Stat_t
		err := unix.Fstat(int(n.desc.file.Fd()), &st)
		if err == nil {
			err = n.rec.Put(p.p.j.mem, st.Dev, st.Ino)
		}
		if err != nil {
			return fmt.Errorf("database %s: %w", n.desc.obj.path, err)
		}
	}
	return nil
}
