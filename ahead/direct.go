package ahead

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// direct says whether a process has a file open with O_DIRECT: the kernel may be writing into its pages behind the protection's back.
func direct(pid int) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return false, fmt.Errorf("list descriptors of process %d: %w", pid, err)
	}
	var b [512]byte
	for _, n := range names {
		f, err := os.Open(dir + "/" + n)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		got, err := f.Read(b[:])
		f.Close()
		if err != nil {
			if errors.Is(err, unix.ENOENT) { // closed meanwhile
				continue
			}
			return false, fmt.Errorf("look at descriptor %s of process %d: %w", n, pid, err)
		}
		flags, err := fileFlags(b[:got])
		if err != nil {
			return false, fmt.Errorf("look at descriptor %s of process %d: %w", n, pid, err)
		}
		if flags&unix.O_DIRECT != 0 && flags&unix.O_ACCMODE != unix.O_WRONLY {
			return true, nil
		}
	}
	return false, nil
}

// fileFlags reads the second line of fdinfo: "flags:	0100002".
func fileFlags(b []byte) (uint64, error) {
	_, v, ok := bytes.Cut(b, []byte("flags:"))
	v, _, end := bytes.Cut(v, []byte("\n"))
	if !ok || !end {
		return 0, unix.EINVAL
	}
	return strconv.ParseUint(string(bytes.TrimSpace(v)), 8, 64)
}
