package detach

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
)

// Call makes one system call in a process, by its first thread, which stops for that. Arguments cannot point to anything. The caller must
// not die meanwhile: the thread would go on with the registers of the call.
func Call(pid, nr int, args ...uint64) (result uint64, err error) {
	criu.OnThrowawayThread(func() { result, err = callNow(pid, nr, args) })
	if err != nil {
		return 0, fmt.Errorf("make system call %d in process %d: %w", nr, pid, err)
	}
	return result, nil
}

func callNow(pid, nr int, args []uint64) (result uint64, err error) {
	t := &task{pid: pid, tid: pid}
	alive, err := t.seize()
	if err != nil {
		return 0, err
	}
	if !alive {
		return 0, unix.ESRCH
	}
	defer func() { err = errors.Join(err, t.putBack(), t.letGo()) }()
	if err := t.awaitStop(time.Now().Add(stopTime)); err != nil {
		return 0, err
	}
	if t.dead {
		return 0, unix.ESRCH
	}
	j := &injected{t: t}
	if err := j.take(); err != nil {
		j.close()
		return 0, err
	}
	return j.one(nr, args...)
}
