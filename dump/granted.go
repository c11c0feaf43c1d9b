package dump

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Left is what another process needs to go on with a granted tree when this one has been killed.
type Left struct {
	Cgroup string     `json:"cgroup"`
	Tasks  []LeftTask `json:"tasks"`
	Shared []Object   `json:"shared,omitempty"`
	Remaps []string   `json:"remaps,omitempty"`
	Temp   string     `json:"temp,omitempty"`
	Undo   undoState  `json:"undo"`
}

// LeftTask is a live process of the tree, and what pin changes of it.
type LeftTask struct {
	ID      uint32 `json:"id"`
	PID     int    `json:"pid"`
	Start   uint64 `json:"start"`
	Stopped bool   `json:"stopped,omitempty"` // before the freeze
	OOM     string `json:"oom"`               // oom_score_adj
}

func (l *Left) tasks() []Task {
	var all []Task
	for _, t := range l.Tasks {
		all = append(all, Task{ID: t.ID, PID: t.PID, StartTime: t.Start})
	}
	return all
}

// Lives says whether a task is still there.
func (l *Left) Lives(t LeftTask) bool {
	_, start, err := readStat(t.PID)
	return err == nil && start == t.Start
}

// Result is as Freeze gave it, as far as it can be told.
func (l *Left) Result() *Result {
	return &Result{Tasks: l.tasks(), Objects: l.Shared, Cgroup: l.Cgroup}
}

// Left is valid from the freeze on, and called before Granted.
func (d *Dump) Left() Left {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := Left{Cgroup: d.undo.Cgroup, Remaps: d.undo.Remaps, Temp: d.undo.Temp, Undo: d.undo}
	if d.result == nil {
		return l
	}
	l.Shared = d.result.Objects
	stopped := map[int]bool{} // as settle saw it: of a task that CRIU has had, the frozen state does not tell
	for _, p := range d.procs {
		stopped[p.pid] = p.stopped
	}
	for _, t := range d.result.Tasks {
		oom, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", t.PID)) // a frozen task does not go away
		l.Tasks = append(l.Tasks, LeftTask{ID: t.ID, PID: t.PID, Start: t.StartTime, Stopped: stopped[t.PID], OOM: strings.TrimSpace(string(oom))})
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
	d := &Dump{log: log.With("part", "dump"), state: stateGranted, result: l.Result()}
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
	running := 0
	if err == nil && !frozen {
		running = d.awaitStopped()
	}
	if err == nil {
		err = d.h.write(d.undo.Cgroup, "cgroup.freeze", "1")
	}
	if err != nil {
		return fmt.Errorf("take frozen tree up again: %w", err)
	}
	if running != 0 {
		return fmt.Errorf("take frozen tree up again: process %d has been thawed: %w", running, ErrNotStopped)
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

// stopPatience is how long a task that somebody has thawed may take to see pin's SIGSTOP.
const stopPatience = 2 * time.Second

// awaitStopped waits until all tasks are stopped; it gives one that is not.
func (d *Dump) awaitStopped() (running int) {
	for end := time.Now().Add(stopPatience); ; time.Sleep(5 * time.Millisecond) { //nolint:forbidigo // the kernel tells only the parent
		running = 0
		for _, t := range d.result.Tasks {
			if state, start, err := readStat(t.PID); err == nil && start == t.StartTime && !strings.ContainsRune("TZX", rune(state)) {
				running = t.PID
			}
		}
		if running == 0 || time.Now().After(end) {
			return running
		}
	}
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

// Thaw lets a tree run again of which it is certain that it never ran elsewhere, nor will: as Abort would have done, with each task in the state that it had. What
// has been done to its sockets stays, and handlers of SIGCONT run.
func Thaw(l Left) error {
	h, err := openHierarchy()
	if err != nil {
		return fmt.Errorf("thaw tree: %w", err)
	}
	defer h.root.Close()
	if _, err := h.event(l.Cgroup, "populated"); err != nil {
		return fmt.Errorf("thaw tree: %w: %w", ErrGone, err)
	}
	there, errs := l.unpin()
	var mnt *os.File
	for _, pid := range there {
		if mnt, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err == nil {
			defer mnt.Close()
			break
		}
		errs = append(errs, err)
	}
	if mnt == nil {
		return fmt.Errorf("thaw tree: %w", errors.Join(append(errs, ErrGone)...))
	}
	u := l.Undo
	u.CRIU = 0
	if err := errors.Join(append(errs, rescue(&u, mnt, h))...); err != nil {
		return fmt.Errorf("thaw tree: %w", err)
	}
	return nil
}

// TakeBack is Thaw in the process that has the frozen tree, and may be confined so that it can't enter a mount namespace any more.
func (d *Dump) TakeBack(l Left) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != stateGranted {
		return fmt.Errorf("thaw tree of process %d: dump is %v: %w", d.o.PID, d.state, ErrState)
	}
	there, errs := l.unpin()
	if len(there) == 0 {
		return fmt.Errorf("thaw tree: %w", errors.Join(append(errs, ErrGone)...))
	}
	if err := errors.Join(append(errs, l.Undo.undo(d.h, d.thread.do))...); err != nil {
		return fmt.Errorf("thaw tree: %w", err)
	}
	d.state = stateUndone
	return nil
}

// unpin undoes pin while the tasks are frozen. It gives the PIDs of those that are there.
func (l *Left) unpin() (there []int, errs []error) {
	for _, t := range l.Tasks {
		if !l.Lives(t) {
			errs = append(errs, fmt.Errorf("process %d has ended", t.PID))
			continue
		}
		there = append(there, t.PID)
		if t.OOM != "" {
			errs = append(errs, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", t.PID), []byte(t.OOM), 0))
		}
		if !t.Stopped { // takes pin's SIGSTOP back
			errs = append(errs, unix.Kill(t.PID, unix.SIGCONT))
		}
	}
	return there, errs
}
