package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const fuseConnections = "/sys/fs/fuse/connections"

// powerOff ends every process of the host. Killing PID 1 alone would do, were it
// not for FUSE: a process that waits for an answer which a daemon has read and
// not given cannot be killed, and if the daemon's /dev/fuse is held by a process
// that waits so itself, nobody ever gives up (zap_pid_ns_processes waits for
// ever). So the host's FUSE connections are aborted first. Stopped processes make
// no new ones meanwhile. TestPowerOffWithStuckFUSE shows it.
func powerOff() {
	_ = unix.Kill(-1, unix.SIGSTOP)
	deadline := time.Now().Add(reportPatience / 2)
	for pause := time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 20*time.Millisecond) {
		pids := processes()
		abortFUSE(pids)
		// ESRCH: nobody is left.
		if err := unix.Kill(-1, unix.SIGKILL); errors.Is(err, unix.ESRCH) || len(pids) == 0 {
			return
		}
		time.Sleep(pause) //nolint:forbidigo // the kernel does not announce the end of the last one
	}
	fmt.Fprintln(os.Stderr, "some process does not die; the kernel waits for it from here on")
}

// processes lists all of the host but init, those of PID namespaces below too.
func processes() []string {
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []string
	for _, e := range ents {
		if n, err := strconv.Atoi(e.Name()); err == nil && n != 1 {
			pids = append(pids, e.Name())
		}
	}
	return pids
}

// abortFUSE aborts every FUSE connection that the mount tables or open files of
// the processes show. The directory lists those of the whole machine.
func abortFUSE(pids []string) {
	conns, err := os.ReadDir(fuseConnections)
	if err != nil || len(conns) == 0 {
		return
	}
	seen := map[string]bool{} // minor numbers of the devices; major is 0
	for _, pid := range append(pids, "1") {
		dir := filepath.Join("/proc", pid)
		b, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
		if err != nil {
			// A main thread that has exited shows nothing, a thread that waits does.
			tasks, _ := filepath.Glob(filepath.Join(dir, "task", "*", "mountinfo"))
			for _, t := range tasks {
				if b, err = os.ReadFile(t); err == nil {
					dir = filepath.Dir(t)
					break
				}
			}
		}
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 2 {
				if minor, ok := strings.CutPrefix(f[2], "0:"); ok {
					seen[minor] = true
				}
			}
		}
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		files := []string{"cwd", "root", "exe"}
		for _, fd := range fds {
			files = append(files, "fd/"+fd.Name())
		}
		for _, f := range files {
			var st unix.Statx_t
			// What the kernel knows already; asking the daemon would wait for it.
			const ask = unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
			if unix.Statx(unix.AT_FDCWD, filepath.Join(dir, f), ask, 0, &st) == nil && st.Dev_major == 0 {
				seen[strconv.Itoa(int(st.Dev_minor))] = true
			}
		}
	}
	for _, c := range conns {
		if seen[c.Name()] {
			_ = os.WriteFile(filepath.Join(fuseConnections, c.Name(), "abort"), []byte("1"), 0)
		}
	}
}
