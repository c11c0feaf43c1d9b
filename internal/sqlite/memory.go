package sqlite

import (
	"io"

	"golang.org/x/sys/unix"
)

// Memory is that of a process. It waits for pages that a userfaultfd is to bring, where /proc/PID/mem says EIO (mm/memory.c, get_user_page_vma_remote).
type Memory int

// ReadAt reads at an address.
func (m Memory) ReadAt(b []byte, addr int64) (int, error) {
	return m.do(unix.ProcessVMReadv, b, addr)
}

// WriteAt writes at an address.
func (m Memory) WriteAt(b []byte, addr int64) (int, error) {
	return m.do(unix.ProcessVMWritev, b, addr)
}

func (m Memory) do(call func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error), b []byte, addr int64) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	n, err := call(int(m), local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
	if err == nil && n < len(b) {
		err = io.ErrUnexpectedEOF
	}
	return max(n, 0), err
}
