package migrate

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const fuseConnections = "/sys/fs/fuse/connections"

// fuseConnection is a FUSE connection in fusectl: a directory whose name is the device number of the file system. The kernel gives that number to the next file
// system at once; the directory's inode number is given to none (fs/fuse/control.c, get_next_ino).
type fuseConnection struct {
	path  string
	inode uint64 // as it was seen first; 0: not yet
}

func findConnection(dir string, number uint32) (c fuseConnection) {
	c.path = fmt.Sprintf("%s/%d", dir, number)
	c.inode = c.look()
	return c
}

// look is the inode number of what has the name now; 0: nothing, or fusectl is not mounted.
func (c *fuseConnection) look() uint64 {
	var st unix.Stat_t
	if unix.Stat(c.path, &st) != nil {
		return 0
	}
	return st.Ino
}

// held says whether the connection is still there when the last descriptors that were closed have let go of it, for which it waits as long as patience.
func (c *fuseConnection) held(patience time.Duration) bool {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) { //nolint:forbidigo // the kernel has no event for it
		now := c.look()
		if c.inode == 0 {
			c.inode = now
		}
		if now == 0 || now != c.inode {
			return false
		}
		if time.Now().After(end) {
			return true
		}
	}
}
