package dump

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// undoState is all that has to be undone, as the keeper gets it (JSON). What is listed may not have been done yet.
type undoState struct {
	Cgroup string   // the tree's own, relative to the hierarchy's root
	Home   string   // where the root process was
	Moved  []moved  // where each process was
	Binds  []string // paths in the tree's mount namespace
	CRIU   int      // its pid; 0: none
	Remaps []string // names made for files without one, paths in the tree's mount namespace
	Temp   string   // directory to remove
	Record string   // a file that holds Mark once the grant has been recorded
	Mark   string
}

type moved struct {
	PID   int
	Start uint64
	Old   string
}

// same says whether pid is still the process that was looked at.
func (m moved) same() bool {
	_, start, err := readStat(m.PID)
	return err == nil && start == m.Start
}

const undoTries = 100

// undo puts everything back: CRIU has ended. inMount runs a function on a thread in the tree's mount namespace. Each
// step is tried whatever became of the one before: the tree must run again.
func (u *undoState) undo(h *hierarchy, inMount func(func() error) error) error {
	var errs []error
	if len(u.Binds)+len(u.Remaps) > 0 {
		errs = append(errs, inMount(func() error {
			var errs []error
			for _, p := range u.Binds {
				errs = append(errs, unbindSmaps(p))
			}
			errs = append(errs, removeRemaps(u.Remaps))
			return errors.Join(errs...)
		}))
	}
	if u.Cgroup != "" {
		errs = append(errs, u.leave(h))
	}
	if u.Temp != "" {
		errs = append(errs, os.RemoveAll(u.Temp))
	}
	return errors.Join(errs...)
}

// leave thaws, moves every process of the cgroup back to where it was, and removes the cgroup. A process that was born
// meanwhile goes where the root process was.
func (u *undoState) leave(h *hierarchy) error {
	err := h.thaw(u.Cgroup)
	if errors.Is(err, unix.ENOENT) {
		return nil // undone before
	}
	errs := []error{err}
	for range undoTries { // each try moves all that are there; a tree that forks meanwhile needs a few
		procs, err := h.procs(u.Cgroup)
		if err != nil {
			errs = append(errs, err)
			break
		}
		if len(procs) == 0 {
			break
		}
		for _, pid := range procs {
			if err := h.move(pid, u.home(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
				if err2 := h.move(pid, u.Home); err2 != nil && !errors.Is(err2, unix.ESRCH) {
					errs = append(errs, err, err2)
				}
			}
		}
	}
	if err := h.await(context.Background(), u.Cgroup, "populated", false, 10*time.Second); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, h.remove(u.Cgroup))...)
}

func (u *undoState) home(pid int) string {
	for _, m := range u.Moved {
		if m.PID == pid && m.same() {
			return m.Old
		}
	}
	return u.Home
}
