package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/dump"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/wire"
)

// going is what a source's process needs to take up a migration that another has begun: STATE-DIR/ID.source/going. It holds the migration's
// token, so nobody else may read it. It is for processes of the same boot: after another the tree is no more, so it is not fsynced.
type going struct {
	Options SourceOptions     `json:"options"`
	Token   wire.Token        `json:"token"`
	Left    dump.Left         `json:"left"`
	Groups  []uint32          `json:"groups"`
	Stdio   []preflight.Stdio `json:"stdio,omitempty"`
	Frozen  time.Time         `json:"frozen"`
	Clock   time.Duration     `json:"clock"` // the target's is ahead by so much
	ClockOK time.Duration     `json:"clock_error"`
	Times   Event             `json:"times"`
	Root    string            `json:"root"`     // of the tree, as who is in this namespace sees it
	MountNS string            `json:"mount_ns"` // the tree's
}

func goingPath(stateDir string, id wire.ID) string {
	return filepath.Join(recordDir(stateDir, id, SideSource), "going")
}

// writeGoing is before the target gets what it needs to hold the tree, and again when the figures are there.
func (s *Source) writeGoing() error {
	if s.going.Left.Cgroup == "" {
		s.going = going{
			Options: s.opt, Token: s.d.token, Left: s.dump.Left(), Groups: s.rep.Tree.Groups, Stdio: s.rep.Want.Stdio,
			Frozen: s.result.FrozenAt, Clock: s.clock.offset, ClockOK: s.clock.err,
		}
		var err, nerr error
		s.going.Root, err = s.files.RootPath()
		s.going.MountNS, nerr = os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", s.opt.PID))
		if err := errors.Join(err, nerr); err != nil {
			return fmt.Errorf("write what another process would need: %w", err)
		}
	}
	s.going.Times = s.times
	if err := writeState(goingPath(s.opt.StateDir, s.opt.ID), s.going); err != nil {
		return fmt.Errorf("write what another process would need: %w", err)
	}
	return nil
}

// writeState replaces a file in one step.
func writeState(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func readGoing(stateDir string, id wire.ID) (*going, error) {
	var g going
	return &g, readState(goingPath(stateDir, id), &g)
}

func readState(path string, v any) error {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("read what is needed to go on: %w", err)
	}
	return nil
}

// targetGoing is what an agent needs to take up a migration of an agent before it.
type targetGoing struct {
	Msg       prepareMsg `json:"msg"`
	Images    string     `json:"images"` // directory in memory
	RestoreMS float64    `json:"restore_ms"`
}

// writeGoing is before the question.
func (t *Target) writeGoing() error {
	if err := writeState(filepath.Join(t.rec.Dir, "going"), targetGoing{Msg: t.msg, Images: t.tmp, RestoreMS: t.restoreMS}); err != nil {
		return fmt.Errorf("write what the next agent would need: %w", err)
	}
	return nil
}

// ErrServed says that a process carries the migration out.
var ErrServed = errors.New("a process of this host carries the migration out")

// lockTime is how long a process that was killed may take to let go of its record: others see its sockets end before that.
const lockTime = 5 * time.Second

// lock makes this process the only one that drives the migration on this side, until it ends.
func (r *Record) lock() error { return r.lockWithin(lockTime) }

func (r *Record) lockWithin(limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) { //nolint:forbidigo // flock(2) has no deadline
		err := unix.Flock(int(r.f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end):
		case errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("migration %v: %w", r.ID, ErrServed)
		default:
			return fmt.Errorf("lock record of migration %v: %w", r.ID, err)
		}
	}
}

// lock keeps others from driving a migration, if nobody does, until the file is closed.
func (k Known) lock() (*os.File, error) {
	f, err := os.Open(filepath.Join(k.Dir, "record"))
	if err != nil {
		return nil, fmt.Errorf("lock record of migration %v: %w", k.ID, err)
	}
	r := Record{ID: k.ID, f: f}
	if err := r.lockWithin(0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// find reads one migration's record of one side.
func find(stateDir string, id wire.ID, side Side) (Known, error) {
	k := Known{ID: id, Dir: recordDir(stateDir, id, side)}
	var err error
	k.Entries, err = readRecord(filepath.Join(k.Dir, "record"))
	if err == nil && len(k.Entries) == 0 {
		err = fmt.Errorf("read record of migration %v: it is empty", id)
	}
	return k, err
}

// entered is when a state was entered.
func (k Known) entered(s State) time.Time {
	for _, e := range k.Entries {
		if e.State == s {
			return e.Time
		}
	}
	return time.Time{}
}
