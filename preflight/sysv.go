package preflight

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// getPID is semctl's GETPID (include/uapi/linux/sem.h): who was the last to change a semaphore.
const getPID = 11

// maxSemaphores bounds how many are asked for: a set has 32,000 at most.
const maxSemaphores = 100_000

// checkSysV looks for semaphores and queues of this host's IPC namespace that a task of the tree was the last to use: nothing else tells whose they are. Those of a
// namespace of the tree's own move with it.
func (in *inspector) checkSysV() {
	if slices.Contains(in.rep.Tree.Foreign, "ipc") {
		return
	}
	refuse := func(pid int, what string) {
		in.add(Finding{
			"sysv-ipc", Refuse, pid, fmt.Sprintf("%s uses %s of this host's IPC namespace", in.byPID[pid].Comm, what),
			"everybody on the host may use it, so it cannot leave", "start it with unshare -i",
		})
	}
	left := maxSemaphores
	for _, set := range in.sysvipc("sem", "semid", "nsems") {
		for i := 0; i < set[1] && left > 0; i++ {
			left--
			pid, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(set[0]), uintptr(i), getPID, 0, 0, 0)
			if errno == 0 && in.byPID[int(pid)] != nil {
				refuse(int(pid), fmt.Sprintf("System V semaphores (%d)", set[0]))
				break
			}
		}
	}
	for _, q := range in.sysvipc("msg", "msqid", "lspid", "lrpid") {
		for _, pid := range q[1:] {
			if in.byPID[pid] != nil {
				refuse(pid, fmt.Sprintf("a System V message queue (%d)", q[0]))
				break
			}
		}
	}
}

// sysvipc reads columns of a file of /proc/sysvipc, whose first line names them. A kernel without it has no such objects.
func (in *inspector) sysvipc(kind string, columns ...string) (list [][]int) {
	b, err := os.ReadFile(filepath.Join(in.proc, "sysvipc", kind))
	if err != nil {
		return nil
	}
	var at []int
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if at == nil {
			for _, c := range columns {
				at = append(at, slices.Index(f, c))
			}
			continue
		}
		var row []int
		for _, i := range at {
			if i < 0 || i >= len(f) {
				break
			}
			n, err := strconv.Atoi(f[i])
			if err != nil {
				break
			}
			row = append(row, n)
		}
		if len(row) == len(columns) {
			list = append(list, row)
		}
	}
	return list
}
