package detach

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/internal/urgent"
)

// Lock is a POSIX lock of a process.
type Lock struct {
	PID   int
	FD    int
	Write bool
	Start int64
	Len   int64 // 0: to the end of any file
}

// MappedLocks are the POSIX locks of a process on files that it has mapped, too. CRIU takes locks first and closes the descriptors that it maps files by
// afterwards (criu/pie/restorer.c, restore_mapping): closing any descriptor of a file ends the process's locks on it. SQLite's write-ahead log depends on such a lock.
func MappedLocks(pid int) ([]Lock, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	fds, err := numbers(dir + "fd")
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list descriptors of process %d: %w", pid, err)
	}
	type file struct{ dev, ino uint64 }
	var mapped map[file]bool
	var all []Lock
	for _, fd := range fds {
		in, err := readFDInfo(pid, fd)
		if err != nil {
			continue // closed meanwhile
		}
		for _, l := range in.locks {
			if l.kind != "POSIX" {
				continue
			}
			if mapped == nil {
				mapped = map[file]bool{}
				links, _ := filepath.Glob(dir + "map_files/*") // the pattern is good
				for _, m := range links {
					if st, err := Peek(m); err == nil {
						mapped[file{st.Dev, st.Ino}] = true
					}
				}
			}
			if st, err := Peek(fmt.Sprintf("%sfd/%d", dir, fd)); err == nil && mapped[file{st.Dev, st.Ino}] {
				all = append(all, Lock{pid, fd, l.lk.Type == unix.F_WRLCK, l.lk.Start, l.lk.Len})
			}
		}
	}
	return all, nil
}

// Relock stops the processes for a moment and takes the locks for them.
func Relock(locks []Lock) (err error) {
	if len(locks) == 0 {
		return nil
	}
	criu.OnThrowawayThread(func() { err = relock(locks) }) // as Switch
	return err
}

func relock(locks []Lock) (err error) {
	defer urgent.Thread()()
	s := &stopped{known: map[int]bool{}}
	defer func() { err = errors.Join(err, s.release(nil)) }()
	byPID := map[int][]Lock{}
	for _, l := range locks {
		byPID[l.PID] = append(byPID[l.PID], l)
	}
	err = s.stopAll(func() (pids []int, err error) {
		for pid := range byPID {
			pids = append(pids, pid)
		}
		return pids, nil
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range s.tasks {
		if t.tid != t.pid || t.dead {
			continue
		}
		for some := range slices.Chunk(byPID[t.pid], 1000) {
			if err := t.lock(some); err != nil {
				errs = append(errs, fmt.Errorf("locks of process %d: %w", t.pid, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (t *task) lock(locks []Lock) error {
	if t.inj == nil {
		if _, err := inject(t); err != nil {
			return err
		}
	}
	j := t.inj
	var calls []call
	var b []byte
	size := int(unsafe.Sizeof(unix.Flock_t{}))
	for i, l := range locks {
		lk := unix.Flock_t{Type: unix.F_RDLCK, Start: l.Start, Len: l.Len}
		if l.Write {
			lk.Type = unix.F_WRLCK
		}
		b = append(b, bytesOf(&lk)...)
		calls = append(calls, sysCall(unix.SYS_FCNTL, uint64(l.FD), unix.F_SETLK, j.data(uint64(i*size))))
	}
	if err := j.put(0, b); err != nil {
		return err
	}
	res, err := j.run(calls...)
	if err != nil {
		return err
	}
	return check(res, func(i int) string { return fmt.Sprintf("lock of descriptor %d", locks[i].FD) })
}
