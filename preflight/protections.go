package preflight

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// include/uapi/linux/prctl.h, v6.3 and v6.4.
const (
	prGetMDWE        = 66
	prGetMemoryMerge = 68
)

// checkProtections looks for restrictions that CRIU loses without a word and that no file shows: MDWE and Landlock. It
// asks each process's first thread; children inherit both. KSM, which Linux 6.4 to 6.14 do not show either, is asked for with them.
func (in *inspector) checkProtections() {
	for _, t := range in.tasks {
		if t.zombie() {
			continue
		}
		err := errCannot
		if !in.opt.NoProbe && t.stat.state != 'T' && t.stat.state != 't' && t.status["TracerPid"] == "0" {
			err = in.probe(t)
		}
		if err == nil || gone(err) {
			continue
		}
		in.log.Debug("ask for MDWE and Landlock", "pid", t.PID, "err", err)
		if t.status["NoNewPrivs"] == "1" {
			in.add(Finding{
				"landlock-unknown", Warn, t.PID, t.Comm + " has given up gaining privileges, so it may have confined itself by Landlock or MDWE as well",
				"these would be lost, and could not be asked for", "make sure that it has not",
			})
		}
	}
}

// probe asks one process. A Landlock domain forbids tracing anything outside of it, and kcmp wants the right to trace: a
// bystander of the same user, made for this, is allowed to everybody who is not in a domain.
func (in *inspector) probe(t *task) error {
	insn, ok := syscallInsn(t.dir, t.vmas)
	if !ok {
		return fmt.Errorf("find a system call in the vdso: %w", errCannot)
	}
	return ownThread(func() error {
		calls := []call{{unix.SYS_PRCTL, [5]uint64{prGetMDWE}}, {unix.SYS_PRCTL, [5]uint64{prGetMemoryMerge}}}
		by, err := in.bystander(t)
		if err != nil {
			in.log.Debug("start bystander", "err", err)
		} else {
			defer by.close()
			pid := uint64(by.nsPid)
			calls = append(calls, call{unix.SYS_KCMP, [5]uint64{pid, pid, kcmpVM}})
		}
		r, askErr := ask(t.PID, t.status["Seccomp"] != "0", insn, calls)
		if askErr != nil {
			return askErr
		}
		if r[0] > 0 && r[0]&1 != 0 {
			in.loss("mdwe", t.PID, t.Comm+" denies memory that is writable and executable (PR_SET_MDWE)", "it would be allowed again at the target")
		}
		t.merges = r[1] == 1
		switch {
		case err != nil:
			return fmt.Errorf("ask for Landlock: %w", errors.Join(errCannot, err))
		case r[2] == -int64(unix.EPERM) && len(in.rep.Tree.LSMProfiles) == 0:
			in.loss("landlock", t.PID, t.Comm+" is confined by Landlock", "the confinement would be gone at the target")
		case r[2] != 0:
			return fmt.Errorf("ask for Landlock: %w", errors.Join(errCannot, unix.Errno(-r[2])))
		}
		return nil
	})
}

// bystander is a process that does nothing.
type bystander struct {
	cmd   *exec.Cmd
	in    io.Closer
	nsPid int
}

func (b *bystander) close() {
	_ = b.in.Close()
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
}

// bystander starts one as the task's real user, without capabilities, visible in its PID namespace. It runs on a thread of
// its own that ends soon.
func (in *inspector) bystander(t *task) (*bystander, error) {
	foreign := in.rep.Tree.Foreign
	if slices.Contains(foreign, "user") {
		return nil, fmt.Errorf("%s is in another user namespace: %w", t.Comm, errCannot)
	}
	path, err := exec.LookPath("cat")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
		Uid: uint32(nthUint(t.status["Uid"], 0, 10)), Gid: uint32(nthUint(t.status["Gid"], 0, 10)),
	}}
	stdin, err := cmd.StdinPipe() // it ends when this is closed, also by our death
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	// Its capabilities have to be fewer than the task's. Only this thread's children are bounded, and it ends soon.
	for c := range uintptr(64) {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("drop capabilities: %w", err)
		}
	}
	if slices.Contains(foreign, "pid") {
		fd, err := unix.Open(filepath.Join(t.dir, "ns/pid"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWPID); err != nil { // for children of this thread
			return nil, fmt.Errorf("join PID namespace of %d: %w", t.PID, err)
		}
	}
	if err := cmd.Start(); err != nil {
		_ = stdin.Close()
		return nil, err
	}
	b := &bystander{cmd: cmd, in: stdin}
	var st map[string]string
	if _, err = stdin.Write([]byte{'x'}); err == nil {
		// Start returns in the middle of the exec, and kcmp waits for its end (kernel/kcmp.c, exec_update_lock).
		_, err = io.ReadFull(stdout, make([]byte, 1))
	}
	if err == nil {
		st, err = readStatus(in.dir(cmd.Process.Pid))
	}
	if err != nil {
		b.close()
		return nil, err
	}
	b.nsPid = lastInt(st["NSpid"])
	return b, nil
}
