package preflight

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Inode is a file, on this host.
type Inode struct{ Dev, Ino uint64 }

// Writers tells who can write which of these files: has one open for writing, or mapped shared and writable. Processes of this very program do not
// count: they hold what is written for a tree that has moved. Nor do those that aside says yes to (nil: none).
func Writers(files []Inode, aside func(pid int) bool) (map[Inode]string, error) {
	want := make(map[inodeKey]bool, len(files))
	for _, f := range files {
		want[inodeKey{f.Dev, f.Ino}] = true
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("find writers: %w", err)
	}
	pids, err := numbers("/proc")
	if err != nil {
		return nil, fmt.Errorf("find writers: list processes: %w", err)
	}
	found := map[Inode]string{}
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		exe, err := os.Stat(filepath.Join(dir, "exe"))
		if err != nil || os.SameFile(exe, self) {
			continue // a kernel thread, or gone
		}
		if aside != nil && aside(pid) {
			continue
		}
		who := ""
		note := func(k inodeKey, how string) {
			if who == "" {
				st, _ := readStat(dir) // gone meanwhile: without a name
				who = fmt.Sprintf("%d (%s)", pid, st.comm)
			}
			found[Inode{k.dev, k.ino}] = "is " + how + " by process " + who + " on the source"
		}
		if err := openWriters(dir, want, note); err != nil && !gone(err) && !errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("find writers: %w", err)
		}
		vmas, err := readVMAs(filepath.Join(dir, "maps"))
		if err != nil {
			continue // gone
		}
		for i := range vmas {
			if v := &vmas[i]; v.shared() && v.writable() && want[v.key] {
				note(v.key, "mapped writable")
			}
		}
	}
	return found, nil
}

// openWriters looks at the descriptors of one process.
func openWriters(dir string, want map[inodeKey]bool, note func(inodeKey, string)) error {
	fds, err := numbers(filepath.Join(dir, "fd"))
	if err != nil {
		return err
	}
	for _, fd := range fds {
		n := strconv.Itoa(fd)
		var st unix.Statx_t
		// Not from a server: it may be one that is lost.
		if unix.Statx(unix.AT_FDCWD, filepath.Join(dir, "fd", n), unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st) != nil {
			continue
		}
		k := inodeKey{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}
		if !want[k] {
			continue
		}
		b, err := readFile(filepath.Join(dir, "fdinfo", n))
		if err != nil {
			continue
		}
		flags, _ := strconv.ParseUint(keyed(b)["flags"], 8, 64)
		if flags&unix.O_ACCMODE != unix.O_RDONLY && flags&unix.O_PATH == 0 {
			note(k, "open for writing")
		}
	}
	return nil
}
