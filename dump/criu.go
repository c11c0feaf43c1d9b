package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
)

// Descriptors that criu inherits; it reaches them as /proc/self/fd/N in whichever namespaces it runs.
const (
	criuProgramFD = criu.FirstExtraFD + iota // the prefix, or the binary
	criuImagesFD
	criuCgroupFD
	criuSettingsFD
)

const criuNice = -15

// criuSettings are what CRIU's RPC has no field for, as a configuration file. By default CRIU keeps the build ID of each file, and a restore
// compares: that reads the first half megabyte of each library through FUSE while the tree stands still. It is the source's own file
// that is read there; its size is enough.
const criuSettings = "file-validation filesize\n"

func selfFD(n int) string { return "/proc/self/fd/" + strconv.Itoa(n) }

var errAborted = errors.New("aborted")

// startCRIU starts criu in the tree's namespaces, lets it probe the kernel, and returns when it is held at pre-dump.
func (d *Dump) startCRIU(ctx context.Context) error {
	if d.o.CriuPath == "" && d.o.CriuPrefix == "" {
		var err error
		if d.o.CriuPath, d.o.CriuPrefix, err = criu.Find(""); err != nil {
			return err
		}
	}
	co := criu.Options{Log: d.o.Log, Dir: "/", Thread: func() error {
		// The tree stands still while criu works: on a busy host others wait instead. Best effort.
		if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), criuNice); err != nil {
			d.log.Debug("raise priority of criu", "err", err)
		}
		return d.ns.enter()
	}}
	program := d.o.CriuPrefix
	if program != "" {
		co.Prefix = selfFD(criuProgramFD)
	} else {
		program, co.Path = d.o.CriuPath, selfFD(criuProgramFD)
	}
	prog, err := os.Open(program)
	if err != nil {
		return fmt.Errorf("start criu: %w", err)
	}
	defer prog.Close()
	images, err := os.Open(d.images)
	if err != nil {
		return fmt.Errorf("start criu: %w", err)
	}
	defer images.Close()
	cg, err := d.h.open(d.undo.Cgroup, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("start criu: %w", err)
	}
	defer cg.Close()
	settings, err := memFile("criu.conf", criuSettings)
	if err != nil {
		return fmt.Errorf("start criu: %w", err)
	}
	defer settings.Close()
	co.ExtraFiles = []*os.File{prog, images, cg, settings}
	// The parasite is stopped by a hardware breakpoint, which costs 10–18 ms when no perf event exists in the system;
	// fault 130 makes CRIU step by system calls instead.
	co.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "CRIU_FAULT=130"}
	if d.worker, err = criu.Start(ctx, co); err != nil {
		return err
	}
	d.undo.CRIU = d.worker.PID()
	if err := d.keeper.tell(keeperMessage{State: &d.undo}); err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.Background())
	d.cancel, d.dumped = cancel, make(chan struct{})
	go func() {
		defer close(d.dumped)
		d.dumpErr = d.worker.Dump(run, d.criuOpts(), d.notify(run))
	}()
	select {
	case <-d.held:
		return nil
	case <-d.dumped:
		return d.dumpErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// memFile is a file in memory.
func memFile(name, content string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteString(content); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", name, err), f.Close())
	}
	return f, nil
}

func (d *Dump) criuOpts() *rpc.CriuOpts {
	skip, ignore := rpc.CriuNetworkLockMethod_SKIP, rpc.CriuCgMode_IGNORE
	o := &rpc.CriuOpts{
		ImagesDirFd: new(int32(-1)), ImagesDir: new(selfFD(criuImagesFD)),
		Pid: new(int32(d.procs[0].vpid)), FreezeCgroup: new(selfFD(criuCgroupFD)),
		ConfigFile: new(selfFD(criuSettingsFD)), LogLevel: new(int32(1)), NetworkLock: &skip, ManageCgroupsMode: &ignore, ManageCgroups: new(true),
		OrphanPtsMaster: new(true), External: d.o.External,
		TcpSkipInFlight: new(true), // a connection that nobody has accepted is lost like the others, and may come at any time
		LeaveRunning:    new(true), // in the frozen cgroup: see the package's doc
		FileLocks:       new(true), // one may be taken after the preflight
		LinkRemap:       new(true), // so may the name of an open file that has another be taken away
		TcpClose:        new(d.o.TCPClose), ShellJob: new(d.o.ShellJob),
		ExtUnixSk: new(d.o.Datagrams),
	}
	if d.o.GhostLimit != 0 {
		o.GhostLimit = new(d.o.GhostLimit)
	}
	return o
}

func (d *Dump) notify(ctx context.Context) criu.Notify {
	return func(script string, _ int32) error {
		if d.o.hooks.script != nil {
			d.o.hooks.script(script, d.worker.PID())
		}
		switch script {
		case "pre-dump":
			close(d.held)
			select {
			case <-d.release:
			case <-ctx.Done():
			case <-d.worker.Done(): // killed by somebody; the socket will say so
			}
			if ctx.Err() != nil {
				return errAborted
			}
		case "post-dump":
			if err := d.keepRemaps(); err != nil {
				return err
			}
			close(d.complete)
		}
		return nil
	}
}

// endCRIU ends criu, wherever it is; the tree may be frozen. A refused pre-dump changes nothing in it.
func (d *Dump) endCRIU() error {
	if d.worker == nil {
		return nil
	}
	if d.cancel != nil {
		d.cancel()
	}
	<-d.dumped
	return d.worker.Close()
}
