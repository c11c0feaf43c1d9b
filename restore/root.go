package restore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// capsuleDirs are directories of the host which stay reachable by descriptor when the root is another. criu, in the same
// PID namespace, reaches them as /proc/1/fd/N.
type capsuleDirs struct{ prefix, images, work *os.File }

func openDirs(cfg startConfig) (d capsuleDirs, err error) {
	for _, o := range []struct {
		f    **os.File
		path string
	}{{&d.prefix, cfg.Prefix}, {&d.images, cfg.ImagesDir}, {&d.work, cfg.WorkDir}} {
		fd, err := unix.Open(o.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return d, fmt.Errorf("open directory %s: %w", o.path, err)
		}
		*o.f = os.NewFile(uintptr(fd), o.path)
	}
	return d, nil
}

// byPID1 names what a descriptor of PID 1 refers to, for every process of the capsule.
func byPID1(f *os.File) string { return fmt.Sprintf("/proc/1/fd/%d", f.Fd()) }

// setUpRoot mounts the root with this host's /dev and /sys and a proc of the capsule, and makes it the root. /dev/shm is
// the source's: part of the root. Stage 1 has made all mounts private. It takes over fuse.
func setUpRoot(cfg startConfig, fuse *os.File) error {
	root := cfg.RootDir
	if fuse == nil {
		if err := unix.Mount(cfg.BindRoot, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind root: %w", err)
		}
	} else {
		opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fuse.Fd())
		if err := unix.Mount("lazymig", root, fuseType, 0, opts); err != nil {
			return fmt.Errorf("mount FUSE root: %w", err)
		}
		// Not kept a moment longer: with a copy here, PID 1 could wait for an answer of a dead daemon and not even be killed.
		fuse.Close()
	}
	shm, err := unix.Open(filepath.Join(root, "dev/shm"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("open source's /dev/shm: %w", err)
	}
	haveShm := err == nil
	if haveShm {
		defer unix.Close(shm)
	}
	for _, d := range []string{"dev", "sys"} {
		if err := unix.Mount("/"+d, filepath.Join(root, d), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind /%s: %w", d, err)
		}
	}
	if haveShm {
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", shm), filepath.Join(root, "dev/shm"), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /dev/shm: %w", err)
		}
	}
	if err := bindDatagrams(root, cfg.Datagrams); err != nil {
		return err
	}
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	return nil
}
