package hot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// batch is how many addresses one run of the program reads.
const batch = 64

// kernel reads the kernel's memory by a program of type SYSCALL (Linux 5.14), which runs when it is called and is attached to nothing.
//
// Of its context the first word is a size, the others are addresses; a zero ends them. What it reads lies in the value of the map, a page for each
// address, and behind these a word for each: what bpf_probe_read_kernel returned. The last word is current, the task that called.
type kernel struct {
	prog *ebpf.Program
	data *ebpf.Map
	mem  []byte // its value
	ctx  [1 + batch]uint64
	off  offsets
	la57 bool
	bits uint   // of a physical address
	base uint64 // where physical memory is mapped
}

const (
	resultsAt = batch * pageSize
	currentAt = resultsAt + batch*8
	valueSize = currentAt + pageSize
)

// offsets are of this kernel.
type offsets struct{ files, fdt, fd, private, pgd, args uint32 }

var errKernel = errors.New("this kernel does not let its page tables be read")

// openKernel loads the program and proves that it reads page tables rightly.
func openKernel() (*kernel, error) {
	if runtime.GOARCH != "amd64" || os.Getpagesize() != pageSize {
		return nil, fmt.Errorf("%w: %s", errKernel, runtime.GOARCH)
	}
	k := &kernel{}
	if err := k.load(); err != nil {
		k.close()
		return nil, fmt.Errorf("%w: %w", errKernel, err)
	}
	if err := k.calibrate(); err != nil {
		k.close()
		return nil, fmt.Errorf("%w: %w", errKernel, err)
	}
	return k, nil
}

func (k *kernel) load() (err error) {
	if k.off, err = findOffsets(); err != nil {
		return fmt.Errorf("look types up: %w", err)
	}
	if k.bits, k.la57, err = processor(); err != nil {
		return err
	}
	k.data, err = ebpf.NewMap(&ebpf.MapSpec{Name: "lazymig_hot", Type: ebpf.Array, KeySize: 4, ValueSize: valueSize, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		return fmt.Errorf("make BPF map: %w", err)
	}
	if k.mem, err = unix.Mmap(k.data.FD(), 0, valueSize, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map BPF map: %w", err)
	}
	k.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lazymig_hot", Type: ebpf.Syscall, Flags: unix.BPF_F_SLEEPABLE,
		Instructions: program(k.data.FD()),
		License:      "Dual MIT/GPL", // of these instructions: the helper asks for one that fits the kernel's
	})
	if err != nil {
		return fmt.Errorf("load BPF program: %w", err)
	}
	return nil
}

// program reads each address, one after the other: that many copies of the same instructions need no loop that the verifier has to understand.
func program(data int) asm.Instructions {
	p := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMapValue(asm.R7, data, 0),
		asm.FnGetCurrentTask.Call(),
		asm.Mov.Reg(asm.R8, asm.R7),
		asm.Add.Imm(asm.R8, currentAt),
		asm.StoreMem(asm.R8, 0, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R9, asm.R7),
		asm.Add.Imm(asm.R9, resultsAt),
		asm.LoadMem(asm.R8, asm.R6, 0, asm.DWord),
		asm.JGT.Imm(asm.R8, pageSize, "end"),
	}
	for i := range batch {
		p = append(p,
			asm.LoadMem(asm.R3, asm.R6, int16(8*(i+1)), asm.DWord),
			asm.JEq.Imm(asm.R3, 0, "end"),
			asm.Mov.Reg(asm.R1, asm.R7),
			asm.Add.Imm(asm.R1, int32(i*pageSize)),
			asm.Mov.Reg(asm.R2, asm.R8),
			asm.FnProbeReadKernel.Call(),
			asm.StoreMem(asm.R9, int16(8*i), asm.R0, asm.DWord),
		)
	}
	return append(p, asm.Mov.Imm(asm.R0, 0).WithSymbol("end"), asm.Return())
}

func (k *kernel) close() {
	if k.mem != nil {
		_ = unix.Munmap(k.mem) // its own
	}
	if k.prog != nil {
		k.prog.Close()
	}
	if k.data != nil {
		k.data.Close()
	}
}

// read reads size bytes at each address, at most batch of them. f gets what could be read, which is valid until it returns.
func (k *kernel) read(size uint64, addrs []uint64, f func(i int, b []byte)) error {
	k.ctx[0] = size
	n := copy(k.ctx[1:], addrs)
	if n < batch {
		k.ctx[1+n] = 0
	}
	if _, err := k.prog.Run(&ebpf.RunOptions{Context: k.ctx[:]}); err != nil {
		return fmt.Errorf("read kernel memory: %w", err)
	}
	for i := range n {
		if binary.NativeEndian.Uint64(k.mem[resultsAt+8*i:]) == 0 {
			f(i, k.mem[i*pageSize:i*pageSize+int(size)])
		}
	}
	return nil
}

// word reads one.
func (k *kernel) word(addr uint64) (v uint64, err error) {
	ok := false
	err = k.read(8, []uint64{addr}, func(_ int, b []byte) { v, ok = binary.NativeEndian.Uint64(b), true })
	if err == nil && !ok {
		err = fmt.Errorf("read kernel memory at %#x: %w", addr, unix.EFAULT)
	}
	return v, err
}

// space is the mm behind an open /proc/PID/mem, which keeps it: its private_data (fs/proc/base.c, __mem_open).
func (k *kernel) space(mem *os.File) (mm uint64, err error) {
	runtime.LockOSThread() // current, which is read once more, stays
	defer runtime.UnlockOSThread()
	if err := k.read(8, nil, nil); err != nil {
		return 0, err
	}
	p := binary.NativeEndian.Uint64(k.mem[currentAt:])
	for _, off := range []uint64{uint64(k.off.files), uint64(k.off.fdt), uint64(k.off.fd), 8 * uint64(mem.Fd()), uint64(k.off.private)} {
		if p, err = k.word(p + off); err != nil {
			return 0, err
		}
	}
	return p, nil
}

// findOffsets asks the kernel's BTF.
func findOffsets() (o offsets, err error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return o, err
	}
	for _, f := range []struct {
		in, name string
		to       *uint32
	}{
		{"task_struct", "files", &o.files},
		{"files_struct", "fdt", &o.fdt},
		{"fdtable", "fd", &o.fd},
		{"file", "private_data", &o.private},
		{"mm_struct", "pgd", &o.pgd},
		{"mm_struct", "arg_start", &o.args},
	} {
		var s *btf.Struct
		if err := spec.TypeByName(f.in, &s); err != nil {
			return o, err
		}
		var ok bool
		if *f.to, ok = member(s.Members, f.name, 4); !ok {
			return o, fmt.Errorf("struct %s has no %s: %w", f.in, f.name, unix.ENOENT)
		}
	}
	return o, nil
}

// member is the offset of a field, which may be in an unnamed struct or union.
func member(list []btf.Member, name string, depth int) (uint32, bool) {
	for _, m := range list {
		if m.Name == name {
			return m.Offset.Bytes(), true
		}
		if m.Name != "" || depth == 0 {
			continue
		}
		var in []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			in = t.Members
		case *btf.Union:
			in = t.Members
		}
		if off, ok := member(in, name, depth-1); ok {
			return m.Offset.Bytes() + off, true
		}
	}
	return 0, false
}

// processor says how long a physical address is, without bits that memory encryption takes from it, and whether page tables have five levels: the kernel shows
// la57 only if it uses them (arch/x86/kernel/cpu/common.c).
func processor() (bits uint, la57 bool, err error) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0, false, err
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		switch f := strings.Fields(value); {
		case strings.HasPrefix(key, "flags"):
			for _, w := range f {
				la57 = la57 || w == "la57"
			}
		case strings.HasPrefix(key, "address sizes") && len(f) > 0:
			n, err := strconv.ParseUint(f[0], 10, 8)
			if err != nil || n < 30 || n > 52 {
				return 0, false, fmt.Errorf("read /proc/cpuinfo: %q", line)
			}
			return uint(n), la57, nil
		}
	}
	return 0, false, errors.New("read /proc/cpuinfo: no address sizes")
}
