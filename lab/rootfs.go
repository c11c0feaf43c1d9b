package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// private are the directories that hold a host's own files. A's are laid over
// the machine's.
var private = []struct {
	dir  string
	mode string
}{
	{"/tmp", "1777"},
	{"/run", "755"},
	{"/srv", "755"},
	{"/var/lib/lazymig", "700"},
}

// onDisk are those that Options.Disk keeps on the disk.
var onDisk = map[string]bool{"/srv": true, "/var/lib/lazymig": true}

// mountAll makes the mount namespace that init is in a host's.
func mountAll(c hostConfig) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := dropForeign(); err != nil {
		return err
	}
	shares, err := takeAll(c.Share)
	if err != nil {
		return err
	}
	cgroup, err := take("/sys/fs/cgroup", false)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	disk, err := diskTrees(c)
	if err != nil {
		return err
	}
	run, err := skeleton("/run", 1)
	if err != nil {
		return err
	}
	root := ""
	if c.OwnRoot {
		root = c.Root
		if err := buildRoot(c, root); err != nil {
			return err
		}
	}
	for _, p := range private {
		if t, ok := disk[p.dir]; ok {
			err = t.attach(root + p.dir)
		} else {
			err = mountNew("tmpfs", root+p.dir, "mode="+p.mode)
		}
		if err != nil {
			return err
		}
	}
	if err := run.replay(root); err != nil {
		return err
	}
	if err := mountKernel(root, cgroup); err != nil {
		return err
	}
	for _, t := range shares {
		if !c.OwnRoot && !hidden(t.path) {
			t.close() // A sees it anyway
			continue
		}
		if err := t.attach(root + t.path); err != nil {
			return err
		}
	}
	if root == "" {
		return nil
	}
	return pivot(root)
}

// dropForeign unmounts, in this namespace only, FUSE file systems and what is
// mounted below the directories that will be covered. A copy of a FUSE mount in
// here would keep another test's file system alive after its unmount.
func dropForeign() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	var points []string
	for l := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(l, " - ")
		f := strings.Fields(left)
		if !ok || len(f) < 5 {
			continue
		}
		p := unescape.Replace(f[4])
		fuse := strings.HasPrefix(right, "fuse.") || strings.HasPrefix(right, "fuse ") || strings.HasPrefix(right, "fuseblk ")
		if fuse && p != "/" {
			points = append(points, p)
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// hidden says whether A's private file systems cover path.
func hidden(path string) bool {
	for _, p := range private {
		if path == p.dir || strings.HasPrefix(path, p.dir+"/") {
			return true
		}
	}
	return false
}

// diskTrees makes the directories for Options.Disk and takes them.
func diskTrees(c hostConfig) (map[string]*tree, error) {
	trees := map[string]*tree{}
	if c.Disk == "" {
		return trees, nil
	}
	for dir := range onDisk {
		p := filepath.Join(c.Disk, dir)
		if err := os.MkdirAll(p, 0o755); err != nil {
			return nil, fmt.Errorf("make disk folder: %w", err)
		}
		t, err := take(p, false)
		if err != nil {
			return nil, err
		}
		trees[dir] = t
	}
	return trees, nil
}

// buildRoot makes B's root at dir: a tmpfs with the machine's programs.
func buildRoot(c hostConfig, dir string) error {
	if err := mountNew("tmpfs", dir, "mode=755"); err != nil {
		return err
	}
	for _, name := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/opt"} {
		fi, err := os.Lstat(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", name, err)
		}
		if fi.Mode()&os.ModeSymlink != 0 {
			to, err := os.Readlink(name)
			if err != nil {
				return fmt.Errorf("read link: %w", err)
			}
			if err := os.Symlink(to, dir+name); err != nil {
				return fmt.Errorf("make link: %w", err)
			}
			continue
		}
		t, err := take(name, true)
		if err != nil {
			return err
		}
		if err := t.attach(dir + name); err != nil {
			return err
		}
	}
	for _, d := range []string{"/root", "/home", "/mnt", "/media", "/proc", "/sys", "/dev", "/var"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	// Services look for their own directories below /var, not for others' files.
	vars, err := skeleton("/var", 3)
	if err != nil {
		return err
	}
	if err := vars.replay(dir); err != nil {
		return err
	}
	// The programs are the machine's, so is the record of what is installed.
	if t, err := take("/var/lib/dpkg", true); err == nil {
		if err := t.attach(dir + "/var/lib/dpkg"); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if out, err := exec.Command("cp", "-a", "/etc", dir+"/etc").CombinedOutput(); err != nil {
		return fmt.Errorf("copy /etc: %w: %s", err, out)
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n" + addrA + " lab-a\n" + addrB + " lab-b\n"
	for p, text := range map[string]string{"/etc/hostname": c.Hostname + "\n", "/etc/hosts": hosts} {
		_ = os.Remove(dir + p) // may be a link
		if err := os.WriteFile(dir+p, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", p, err)
		}
	}
	return nil
}

// mountKernel mounts /proc, /sys with cgroups, and /dev.
func mountKernel(root string, cgroup *tree) error {
	if root == "" {
		// Only so that the mount table is not longer than it has to be.
		_ = unix.Unmount("/proc", unix.MNT_DETACH)
	} else {
		dev, err := take("/dev", false)
		if err != nil {
			return err
		}
		if err := dev.attach(root + "/dev"); err != nil {
			return err
		}
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", root+"/proc", "proc", safe, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// A new sysfs shows the host's own network devices.
	if err := unix.Mount("sysfs", root+"/sys", "sysfs", safe, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	// Where the kernel has no FUSE there is nothing to control.
	_ = unix.Mount("fusectl", root+fuseConnections, "fusectl", safe, "")
	if cgroup != nil {
		if err := cgroup.attach(root + "/sys/fs/cgroup"); err != nil {
			return err
		}
	}
	if err := ensureCgroup2(root); err != nil {
		return err
	}
	if err := mountNew("tmpfs", root+"/dev/shm", "mode=1777"); err != nil {
		return err
	}
	if err := unix.Mount("devpts", root+"/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=620,ptmxmode=666"); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	return nil
}

// ensureCgroup2 mounts cgroup v2 if the machine has not.
func ensureCgroup2(root string) error {
	for _, p := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(root+p, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return nil
		}
	}
	at := "/sys/fs/cgroup"
	if ents, err := os.ReadDir(root + at); err == nil && len(ents) > 0 {
		at += "/unified" // beside v1
	}
	return mountNew("cgroup2", root+at, "")
}

func mountNew(fstype, at, data string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return fmt.Errorf("make mount point %s: %w", at, err)
	}
	if err := unix.Mount(fstype, at, fstype, 0, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, at, err)
	}
	return nil
}

// pivot makes root the root and drops the machine's files.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	// pivot_root(2), "pivot_root(".", ".")": the old root lands on top of the new.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	return nil
}
