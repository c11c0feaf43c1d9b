package preflight

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/park"
)

// What the probe does with a thread also serves those who need a descriptor that only the process itself can make.

// Borrow lets a process make a call that gives it a descriptor, takes that, and closes it there, all in one stop of its first thread. If
// another thread forks meanwhile, the child has a copy.
func Borrow(pid int, nr uint64, args ...uint64) (*os.File, error) {
	return borrow(slog.New(slog.DiscardHandler), pid, nr, args)
}

func borrow(log *slog.Logger, pid int, nr uint64, args []uint64) (*os.File, error) {
	var mine *os.File
	err := inProcess(pid, func(p *tracee, insn uint64) error {
		c := call{nr: nr}
		copy(c.args[:], args)
		fd, err := p.do(insn, c)
		park.At(log, "inject")
		if err == nil && fd < 0 {
			err = unix.Errno(-fd)
		}
		if err != nil {
			return err
		}
		mine, err = takeDescriptor(pid, int(fd))
		_, cerr := p.do(insn, call{unix.SYS_CLOSE, [5]uint64{uint64(fd)}})
		return errors.Join(err, cerr)
	})
	if err != nil {
		if mine != nil {
			mine.Close()
		}
		return nil, fmt.Errorf("make system call %d in process %d: %w", nr, pid, err)
	}
	return mine, nil
}

// CloseIn lets a process close a descriptor.
func CloseIn(pid, fd int) error {
	return inProcess(pid, func(p *tracee, insn uint64) error {
		r, err := p.do(insn, call{unix.SYS_CLOSE, [5]uint64{uint64(fd)}})
		if err == nil && r < 0 {
			err = unix.Errno(-r)
		}
		return err
	})
}

// inProcess is inThread for the first thread of a process that nobody has looked at.
func inProcess(pid int, f func(p *tracee, insn uint64) error) error {
	dir := fmt.Sprintf("/proc/%d", pid)
	st, err := readStatus(dir)
	if err != nil {
		return err
	}
	vmas, err := readVMAs(dir + "/maps")
	if err != nil {
		return err
	}
	insn, ok := syscallInsn(dir, vmas)
	if !ok {
		return fmt.Errorf("find a system call in the vdso: %w", errCannot)
	}
	return ownThread(func() error {
		return inThread(pid, st["Seccomp"] != "0", func(p *tracee) error { return f(p, insn) })
	})
}

func takeDescriptor(pid, fd int) (*os.File, error) {
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process: %w", err)
	}
	defer unix.Close(p)
	mine, err := unix.PidfdGetfd(p, fd, 0)
	if err != nil {
		return nil, fmt.Errorf("take descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(mine), "borrowed"), nil
}
