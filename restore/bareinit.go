package restore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A tree that has all of its own still needs a PID 1: with it its PID namespace ends. What is left for that is the program below. It reaps, and ends
// when no process is left: neither children nor guests (see guest.go). It holds no descriptor, and lies in a sealed memfd, so that nothing on any
// file system is its executable.

// bareInitCode is position independent; the name "init" and the timespec stand behind it.
var bareInitCode = []byte{
	0xb8, 157, 0, 0, 0, // mov eax, SYS_prctl
	0xbf, 15, 0, 0, 0, // mov edi, PR_SET_NAME
	0x48, 0x8d, 0x35, 0x64, 0, 0, 0, // lea rsi, [rip+name]
	0x0f, 0x05, // syscall
	// reap:
	0xb8, 61, 0, 0, 0, // mov eax, SYS_wait4
	0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, // mov rdi, -1
	0x31, 0xf6, // xor esi, esi
	0xba, 0, 0, 0, 0x40, // mov edx, __WALL
	0x4d, 0x31, 0xd2, // xor r10, r10
	0x0f, 0x05, // syscall
	0x48, 0x85, 0xc0, // test rax, rax
	0x79, 0xe3, // jns reap
	0x48, 0x83, 0xf8, 0xfc, // cmp rax, -EINTR
	0x74, 0xdd, // je reap
	// No children: is anybody else here?
	0xb8, 62, 0, 0, 0, // mov eax, SYS_kill
	0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, // mov rdi, -1
	0x31, 0xf6, // xor esi, esi
	0x0f, 0x05, // syscall
	0x48, 0x83, 0xf8, 0xfd, // cmp rax, -ESRCH
	0x74, 0x12, // je end
	0xb8, 35, 0, 0, 0, // mov eax, SYS_nanosleep
	0x48, 0x8d, 0x3d, 0x1c, 0, 0, 0, // lea rdi, [rip+time]
	0x31, 0xf6, // xor esi, esi
	0x0f, 0x05, // syscall
	0xeb, 0xb5, // jmp reap
	// end:
	0xb8, 231, 0, 0, 0, // mov eax, SYS_exit_group
	0x31, 0xff, // xor edi, edi
	0x0f, 0x05, // syscall
	0x0f, 0x0b, // ud2
}

const guestPoll = 100_000_000 // ns between looks for guests, who are nobody's children here

// bareInit is the program: an ELF file of one segment.
func bareInit() []byte {
	const base, head = 0x400000, 64 + 56
	le := binary.LittleEndian
	code := bytes.Clone(bareInitCode)
	nameAt := (len(code) + 7) &^ 7
	code = append(code, make([]byte, nameAt-len(code))...)
	code = append(code, "init\x00\x00\x00\x00"...)
	timeAt := len(code)
	code = le.AppendUint64(code, 0)
	code = le.AppendUint64(code, guestPoll)
	// Both lea count from the instruction behind them.
	for at, to := range map[int]int{bytes.Index(code, []byte{0x48, 0x8d, 0x35}): nameAt, bytes.Index(code, []byte{0x48, 0x8d, 0x3d}): timeAt} {
		le.PutUint32(code[at+3:], uint32(to-at-7))
	}
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, v := range []uint16{2, 62} { // ET_EXEC, EM_X86_64
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{base + head, 64, 0} { // entry, program headers, section headers
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	size := uint64(head + len(code))
	b = le.AppendUint32(b, 1)                                       // PT_LOAD
	b = le.AppendUint32(b, 5)                                       // readable, executable
	for _, v := range []uint64{0, base, base, size, size, 0x1000} { // offset, addresses, sizes, alignment
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}

const (
	bareInitName = "init"
	mfdExec      = 0x10 // MFD_EXEC, Linux 6.3
)

// openBareInit puts the program into a sealed memfd.
func openBareInit() (*os.File, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(bareInitName, flags|mfdExec)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(bareInitName, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("make bare init: %w", err)
	}
	f := os.NewFile(uintptr(fd), bareInitName)
	_, err = f.Write(bareInit())
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make bare init: %w", err)
	}
	return f, nil
}
