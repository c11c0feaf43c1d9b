package restore

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// awaitGuest waits for the end of one process of the capsule that is not a child of PID 1, and says whether there was one. Such
// a guest has entered from outside: a migration that moves the tree on keeps the capsule, and so the files below its root, alive by it.
func awaitGuest() bool {
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	holder := 0
	for _, e := range ents {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid > holder {
			holder = pid // the highest PID of the namespace, see holder.go
		}
	}
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == holder {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // ended meanwhile
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if _, err = unix.Poll(p, -1); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		unix.Close(fd)
		return err == nil
	}
	return false
}
