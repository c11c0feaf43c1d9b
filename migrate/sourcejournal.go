package migrate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// What the file server knows is written down twice: to the warden, which has copies of the descriptors and hands all over in a moment, and to a file, for when the
// warden is killed, too (Recover). Either may fail: then the other goes on.

func filesPath(stateDir string, id wire.ID) string {
	return filepath.Join(recordDir(stateDir, id, SideSource), "files")
}

// sourceJournal writes both.
type sourceJournal struct {
	file   *remotefs.JournalFile // nil: there is none, or it has failed
	warden remotefs.Journal      // as above
	lost   func(what string, err error)
}

// Send implements remotefs.Journal.
func (j *sourceJournal) Send(b []byte, fds ...int) error {
	if j.file != nil {
		if err := j.file.Send(b, fds...); err != nil {
			j.file.Close()
			j.file = nil
			go j.lost("file", err) // the caller holds locks
		}
	}
	if j.warden != nil {
		if err := j.warden.Send(b, fds...); err != nil {
			j.warden = nil
			go j.lost("warden", err) // as above
		}
	}
	if j.file == nil && j.warden == nil {
		return errors.New("neither file nor warden takes it")
	}
	return nil
}

// journaling writes the journal anew when its file has become long, or another warden is to have it.
type journaling struct {
	full  chan struct{}
	stop  chan struct{}
	done  chan struct{}
	file  *remotefs.JournalFile
	alone bool // there is no warden any more, nor will be
}

// startJournal is when the file server is there.
func (s *Source) startJournal() {
	s.journal = &journaling{full: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	s.writeJournal()
	go func() {
		defer close(s.journal.done)
		for {
			lost, spareLost := s.warden.losses()
			if s.journal.alone {
				lost, spareLost = nil, nil
			}
			select {
			case <-s.journal.full:
				s.writeJournal()
			case <-lost:
				if err := s.warden.replace(); err != nil {
					s.log.Error("replace warden", "err", err)
					s.journal.alone = errors.Is(err, errNoWarden)
					continue
				}
				s.writeJournal()
			case <-s.warden.spared: // to look at its end, too
			case <-spareLost:
				s.warden.another(s.journal.stop)
			case <-s.journal.stop:
				return
			}
		}
	}()
}

// writeJournal begins with all that there is.
func (s *Source) writeJournal() {
	j := &sourceJournal{warden: journalTo{s.warden.link().sock}, lost: s.journalLost}
	old := s.journal.file
	var err error
	if j.file, err = s.files.NewJournalFile(filesPath(s.opt.StateDir, s.opt.ID), func() {
		select {
		case s.journal.full <- struct{}{}:
		default:
		}
	}); err != nil {
		s.journalLost("file", err)
	}
	s.journal.file = j.file
	s.files.SetJournal(j, nil)
	if old != nil {
		old.Close()
	}
}

func (s *Source) journalLost(what string, err error) {
	if what == "warden" { // its link tells, too, and another takes its place
		s.log.Debug("write journal of files", "err", err)
		return
	}
	s.log.Error("what the tree has open can't be written down: should this process and its warden be killed, its files are not served any more", "err", err)
}

// stopJournal is before the end of the file server.
func (s *Source) stopJournal() {
	if s.journal == nil {
		return
	}
	close(s.journal.stop)
	<-s.journal.done
	if s.journal.file != nil {
		s.journal.file.Close()
	}
	if st := s.State(); st.Final() {
		_ = os.Remove(filesPath(s.opt.StateDir, s.opt.ID)) // it goes with the record
	}
}

// loadFiles takes what the processes before have written down. The tasks of a frozen tree have what has no name.
func (s *Source) loadFiles(g *going) (*remotefs.Standby, error) {
	var f remotefs.Finder
	for _, t := range g.Left.Tasks {
		if g.Left.Lives(t) {
			f.Tasks = append(f.Tasks, t.PID)
			f.Roots = append(f.Roots, fmt.Sprintf("/proc/%d/root", t.PID))
		}
	}
	if mine, err := os.Readlink("/proc/self/ns/mnt"); err == nil && mine == g.MountNS {
		f.Roots = append(f.Roots, g.Root)
	}
	st, lost, err := remotefs.LoadJournal(filesPath(s.opt.StateDir, s.opt.ID), f)
	if err != nil {
		return nil, err
	}
	s.lostFiles = lost
	return st, nil
}
