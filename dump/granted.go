package dump

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Left is what another process needs to go on with a granted tree when this one has been killed.
type Left struct {
	Cgroup string   `json:"cgroup"`
	Tasks  []Task   `json:"tasks"` // without regions
	Remaps []string `json:"remaps,omitempty"`
	Temp   string   `json:"temp,omitempty"`
}

// Left is valid from the freeze on.
func (d *Dump) Left() Left {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := Left{Cgroup: d.undo.Cgroup, Remaps: d.undo.Remaps, Temp: d.undo.Temp}
	if d.result == nil {
		return l
	}
	for _, t := range d.result.Tasks {
		l.Tasks = append(l.Tasks, Task{ID: t.ID, PID: t.PID, StartTime: t.StartTime})
	}
	return l
}

// ErrGone says that a tree is no more: another process's kill, or the kernel's.
var ErrGone = errors.New("the frozen tree is no more")

// Adopt takes a granted tree up again in another process of the same boot. The tree stays frozen, and is frozen again if somebody has thawed it while
// its tasks were stopped as well (pin). If they were not, it has run, and its memory is not that of the images any more: ErrNotStopped. A tree that is no more gives
// ErrGone, with a Dump that is as after KillTree.
func Adopt(l Left, log *slog.Logger) (*Dump, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Dump{log: log.With("part", "dump"), state: stateGranted, result: &Result{Cgroup: l.Cgroup, Tasks: l.Tasks}}
	d.undo.Cgroup, d.undo.Remaps = l.Cgroup, l.Remaps
	if l.Temp != "" {
		if err := os.RemoveAll(l.Temp); err != nil {
			d.log.Warn("remove images", "err", err)
		}
	}
	var err error
	if d.h, err = openHierarchy(); err != nil {
		return nil, fmt.Errorf("take frozen tree up again: %w", err)
	}
	if err := d.adopt(); err != nil {
		if errors.Is(err, ErrGone) {
			d.state = stateKilled
			return d, err
		}
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Dump) adopt() error {
	populated, err := d.h.event(d.undo.Cgroup, "populated")
	if errors.Is(err, unix.ENOENT) || err == nil && !populated {
		return errors.Join(ErrGone, d.h.remove(d.undo.Cgroup))
	}
	var frozen bool
	if err == nil {
		frozen, err = d.h.event(d.undo.Cgroup, "frozen")
	}
	if err == nil {
		err = d.h.write(d.undo.Cgroup, "cgroup.freeze", "1")
	}
	if err != nil {
		return fmt.Errorf("take frozen tree up again: %w", err)
	}
	for _, t := range d.result.Tasks {
		if state, _, err := readStat(t.PID); err == nil && !frozen && state != 'T' {
			return fmt.Errorf("take frozen tree up again: process %d has been thawed: %w", t.PID, ErrNotStopped)
		}
	}
	if err := d.pin(); err != nil {
		return err
	}
	for _, t := range d.result.Tasks {
		mnt, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", t.PID))
		if err != nil {
			continue // another task has the same
		}
		defer mnt.Close()
		d.thread, err = startNSThread(mnt)
		return err
	}
	return ErrGone
}

// pin is from the grant on: the tasks stay stopped should somebody thaw them, and the kernel takes others first when memory is short. Tasks are
// known by PID and start: the number may be another's by now.
func (d *Dump) pin() error {
	same := 0
	for _, t := range d.result.Tasks {
		fd, err := unix.PidfdOpen(t.PID, 0)
		if err != nil {
			continue // it has ended
		}
		_, start, err := readStat(t.PID)
		if err != nil || start != t.StartTime { // looked at after the pidfd was opened: it is this very process
			unix.Close(fd)
			continue
		}
		same++
		if err := unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			d.log.Warn("stop frozen task as well", "pid", t.PID, "err", err)
		}
		unix.Close(fd)
		if err := os.WriteFile("/proc/"+strconv.Itoa(t.PID)+"/oom_score_adj", []byte("-1000"), 0); err != nil {
			d.log.Debug("spare frozen task when memory is short", "pid", t.PID, "err", err) // needs CAP_SYS_RESOURCE
		}
	}
	if same == 0 {
		return ErrGone
	}
	return nil
}
