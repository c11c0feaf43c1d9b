package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/lazymig/lazymig/internal/unit"
	"github.com/lazymig/lazymig/preflight"
)

// With --unit the source sees to it that systemd neither kills the frozen tree (WatchdogSec), nor starts the service a second time on files that are the target's: when
// the tree is killed here (Restart), or when this host boots.
//
//	before the freeze     held: Restart=no, WatchdogSec=0, at run time
//	after the grant       disabled, so that no boot starts it
//	the tree is killed    no longer held; it stays disabled
//	the tree runs here    enabled as it was, no longer held
//
// What has been done stands in a file beside the record, so that whoever follows a process that was killed goes on, or gives all back: the next source, the warden
// before the grant, `lazymig recover --resume-source`.
const unitFile = "unit"

var errNoUnit = errors.New("--unit: the process is in no cgroup of a systemd service; remedy: migrate without it")

// unitState is the file.
type unitState struct {
	Name     string `json:"name"`
	Watchdog uint64 `json:"watchdog,omitempty"` // µs, its own
	Enabled  bool   `json:"enabled,omitempty"`  // it was, before it was disabled
}

func readUnit(dir string) (u unitState, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, unitFile))
	if errors.Is(err, fs.ErrNotExist) {
		return u, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &u)
	}
	if err != nil {
		return u, false, fmt.Errorf("read what systemd was asked for: %w", err)
	}
	return u, true, nil
}

func (u unitState) write(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, unitFile), encode(u), 0o600); err != nil {
		return fmt.Errorf("write what systemd is asked for: %w", err)
	}
	return syncDirs(dir)
}

// checkUnit says whether --unit can be had.
func (s *Source) checkUnit() error {
	if s.opt.Unit && s.rep.Tree.Unit == "" {
		return errNoUnit
	}
	return nil
}

// told says whether a finding is of no use to who has said --unit.
func (s *Source) told(f preflight.Finding) bool { return s.opt.Unit && f.Code == preflight.CodeUnit }

// holdUnit keeps systemd from the tree.
func (s *Source) holdUnit() error {
	if !s.opt.Unit {
		return nil
	}
	u := unitState{Name: s.rep.Tree.Unit}
	var err error
	if u.Watchdog, err = unit.Watchdog(u.Name); err != nil {
		return err
	}
	if err := u.write(s.rec.Dir); err != nil { // first: who follows must know
		return err
	}
	triggers, err := unit.Hold(u.Name, u.Watchdog)
	if err != nil {
		return errors.Join(err, os.Remove(filepath.Join(s.rec.Dir, unitFile)))
	}
	for _, t := range triggers {
		s.notice("%s starts %s again when it is asked to: stop and disable it", t, u.Name)
	}
	return nil
}

// disableUnit is for after the grant, beside all else.
func disableUnit(dir string) error {
	u, ok, err := readUnit(dir)
	if err != nil || !ok {
		return err
	}
	if !u.Enabled { // else this process follows one that was killed here
		if u.Enabled, err = unit.Enabled(u.Name); err != nil || !u.Enabled {
			return err
		}
		if err := u.write(dir); err != nil {
			return err
		}
	}
	return unit.Disable(u.Name)
}

// releaseUnit gives systemd the tree back, which runs here.
func releaseUnit(dir string) error {
	u, ok, err := readUnit(dir)
	if err != nil || !ok {
		return err
	}
	if u.Enabled {
		err = unit.Enable(u.Name)
	}
	if err = errors.Join(err, unit.Release(u.Name, u.Watchdog)); err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, unitFile))
}

// retireUnit is for when the tree is dead here.
func retireUnit(dir string) error {
	u, ok, err := readUnit(dir)
	if err != nil || !ok {
		return err
	}
	if err := unit.Release(u.Name, u.Watchdog); err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, unitFile))
}

// units is the work that is done beside serving.
type units struct {
	mu sync.Mutex // one thing after the other
	wg sync.WaitGroup
}

// later does something about the unit; what fails is told.
func (s *Source) later(what func(dir string) error) {
	dir := s.rec.Dir
	s.units.wg.Go(func() {
		s.units.mu.Lock()
		defer s.units.mu.Unlock()
		if err := what(dir); err != nil {
			s.notice("%v", err)
		}
	})
}

// killTree kills the frozen tree, of which systemd is told nothing before.
func (s *Source) killTree() error {
	err := s.dump.KillTree()
	if err == nil {
		s.units.wg.Wait() // it is disabled
		s.later(retireUnit)
	}
	return err
}
