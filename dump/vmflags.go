package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The flags of a mapping (mlock, MADV_WIPEONFORK, …) stand in smaps only, and reading smaps walks the page tables: 10 ms
// for each GB. A BPF iterator over the mappings of a task tells range and flags of each in microseconds. So they are read
// before the snapshot and once more while the tree is frozen. Where BPF is not to be had, smaps is read again after the
// freeze, beside what follows (recheck).

// vmaFlags is one mapping: vm_start, vm_end, vm_flags as the kernel has them.
type vmaFlags struct{ start, end, flags uint64 }

// flagReader is the loaded program.
type flagReader struct {
	prog *os.File
}

// vmaOffsets are of this kernel: looked up once.
var vmaOffsets = sync.OnceValues(func() (o struct {
	start, end, flags int16
	iter              uint32
}, err error,
) {
	t, err := readBTF()
	if err != nil {
		return o, err
	}
	vma, err := t.find(btfStruct, "vm_area_struct")
	if err != nil {
		return o, err
	}
	for name, p := range map[string]*int16{"vm_start": &o.start, "vm_end": &o.end, "vm_flags": &o.flags} {
		if *p, err = t.member(vma, name); err != nil {
			return o, err
		}
	}
	iter, err := t.find(btfFunc, "bpf_iter_task_vma")
	o.iter = uint32(iter)
	return o, err
})

func openFlagReader() (*flagReader, error) {
	o, err := vmaOffsets()
	if err != nil {
		return nil, fmt.Errorf("load mapping iterator: %w", err)
	}
	const (
		load64, store64, move, moveImm, call, exit, jumpIfZero, add = 0x79, 0x7b, 0xbf, 0xb7, 0x85, 0x95, 0x15, 0x07
	)
	regs := func(dst, src uint8) uint8 { return dst | src<<4 }
	insns := []bpfInsn{
		{Code: load64, Regs: regs(6, 1), Off: 16}, // r6 = ctx->vma
		{Code: jumpIfZero, Regs: regs(6, 0), Off: 13},
		{Code: load64, Regs: regs(2, 6), Off: o.start},
		{Code: store64, Regs: regs(10, 2), Off: -24},
		{Code: load64, Regs: regs(2, 6), Off: o.end},
		{Code: store64, Regs: regs(10, 2), Off: -16},
		{Code: load64, Regs: regs(2, 6), Off: o.flags},
		{Code: store64, Regs: regs(10, 2), Off: -8},
		{Code: load64, Regs: regs(1, 1), Off: 0}, // r1 = ctx->meta
		{Code: load64, Regs: regs(1, 1), Off: 0}, // r1 = meta->seq
		{Code: move, Regs: regs(2, 10)},
		{Code: add, Regs: regs(2, 0), Imm: -24},
		{Code: moveImm, Regs: regs(3, 0), Imm: 24},
		{Code: call, Imm: bpfFuncSeqWrite},
		{Code: moveImm, Regs: regs(0, 0), Imm: 0},
		{Code: exit},
	}
	insns[1].Off = int16(len(insns) - 4)  // to "r0 = 0"
	license := []byte("Dual MIT/GPL\x00") // of these instructions: the helper asks for one that fits the kernel's
	a := bpfProgLoadAttr{
		ProgType: bpfProgTypeTracing, ExpectedAttachType: bpfTraceIter, AttachBTFID: o.iter,
		InsnCnt: uint32(len(insns)), Insns: uint64(uintptr(unsafe.Pointer(&insns[0]))), License: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	copy(a.ProgName[:], "lazymig_vma")
	fd, err := bpf(bpfProgLoad, unsafe.Pointer(&a), unsafe.Sizeof(a))
	runtime.KeepAlive(insns)
	runtime.KeepAlive(license)
	if err != nil {
		return nil, fmt.Errorf("load mapping iterator: %w", err)
	}
	return &flagReader{prog: os.NewFile(uintptr(fd), "bpf-prog")}, nil
}

// read lists the mappings of a process, in order of address.
func (r *flagReader) read(pid int) ([]vmaFlags, error) {
	task := &bpfIterTask{TID: uint32(pid)} // of this process's PID namespace
	l := bpfLinkCreateAttr{
		ProgFD: uint32(r.prog.Fd()), AttachType: bpfTraceIter,
		IterInfo: uint64(uintptr(unsafe.Pointer(task))), IterInfoLen: uint32(unsafe.Sizeof(*task)),
	}
	link, err := bpf(bpfLinkCreate, unsafe.Pointer(&l), unsafe.Sizeof(l))
	runtime.KeepAlive(task)
	if err != nil {
		return nil, fmt.Errorf("iterate mappings of process %d: %w", pid, err)
	}
	defer unix.Close(link)
	i := bpfIterCreateAttr{LinkFD: uint32(link)}
	fd, err := bpf(bpfIterCreate, unsafe.Pointer(&i), unsafe.Sizeof(i))
	if err != nil {
		return nil, fmt.Errorf("iterate mappings of process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "bpf-iter")
	defer f.Close()
	// The kernel gives at most 32 KB a read, and after the end of a list that took several reads it begins again with
	// the last of them: an address that does not rise is the end.
	var list []vmaFlags
	var end uint64
	b := make([]byte, 64<<10)
	for {
		n, err := f.Read(b)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("iterate mappings of process %d: %w", pid, err)
		}
		if n%24 != 0 {
			return nil, fmt.Errorf("iterate mappings of process %d: %d bytes: %w", pid, n, unix.EIO)
		}
		for p := b[:n]; len(p) > 0; p = p[24:] {
			v := vmaFlags{binary.NativeEndian.Uint64(p), binary.NativeEndian.Uint64(p[8:]), binary.NativeEndian.Uint64(p[16:])}
			if v.start < end || v.end <= v.start {
				n = 0
				break
			}
			end = v.end
			list = append(list, v)
		}
		if n == 0 {
			break
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("iterate mappings of process %d: %w", pid, unix.ESRCH)
	}
	return list, nil
}

func (r *flagReader) close() { r.prog.Close() }

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
		if errno == unix.EAGAIN || errno == unix.EINTR { // the verifier gives way to signals
			continue
		}
		if errno != 0 {
			return -1, errno
		}
		return int(fd), nil
	}
}
