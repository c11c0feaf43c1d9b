package restore

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A task that waits for an answer which the FUSE daemon will never give cannot be killed, nor can the guardian of its
// namespace. The kernel's way out is to abort the connection: all that wait get ECONNABORTED. That is done once everything
// in the capsule has its SIGKILL, so nothing runs on with the error.

const fuseType = "fuse.lazymig"

// fuseConnections are the numbers of the FUSE connections that the mount namespace of pid has for lazymig: the minors of
// their devices. Reading mountinfo asks no FUSE daemon.
func fuseConnections(pid int) (minors []string) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil // it has ended
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		left, right, ok := strings.Cut(s.Text(), " - ")
		l := strings.Fields(left)
		if !ok || len(l) < 3 || !strings.HasPrefix(right, fuseType+" ") {
			continue
		}
		if _, minor, ok := strings.Cut(l[2], ":"); ok {
			minors = append(minors, minor)
		}
	}
	return minors
}

// abortFuse aborts connections. Those that are gone are none.
func abortFuse(minors []string) error {
	if len(minors) == 0 {
		return nil
	}
	fsfd, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	dir, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	defer unix.Close(dir)
	for _, m := range minors {
		fd, err := unix.Openat(dir, m+"/abort", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		_, err = unix.Write(fd, []byte("1"))
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("abort FUSE connection %s: %w", m, err)
		}
	}
	return nil
}
