package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tmpfsBases are where the images of a migration may lie while they are needed.
var tmpfsBases = []string{"/run", "/dev/shm", "/tmp"}

// MakeDir makes a directory for images that only its owner may enter. Images hold memory of the tree, so it lies in memory, on the first tmpfs of /run,
// /dev/shm and /tmp that takes it; if disk is not empty it is below that instead, whatever file system it has. Whoever calls removes it.
func MakeDir(name, disk string) (string, error) {
	if disk != "" {
		dir, err := os.MkdirTemp(disk, name)
		if err != nil {
			return "", fmt.Errorf("make directory for images: %w", err)
		}
		return dir, nil
	}
	var errs []error
	for _, base := range tmpfsBases {
		var st unix.Statfs_t
		if unix.Statfs(base, &st) != nil || st.Type != unix.TMPFS_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(base, name)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return "", fmt.Errorf("make directory for images: %w", err)
	}
	return "", errors.New("make directory for images: no tmpfs at /run, /dev/shm or /tmp; mount one, or allow images on a disk: --images-on-disk")
}

// FindDirs are the directories that MakeDir(name, "") and MakeDir(name, disk) made and nobody removed.
func FindDirs(name, disk string) (dirs []string) {
	for _, base := range append([]string{disk}, tmpfsBases...) {
		d, _ := filepath.Glob(filepath.Join(base, name+"*")) // the pattern is good
		dirs = append(dirs, d...)
	}
	return dirs
}
