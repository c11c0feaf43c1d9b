package images

import (
	"fmt"
	"os"
	"path/filepath"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"google.golang.org/protobuf/proto"
)

// maxTasks bounds tasks and threads of a tree: the kernel's PID_MAX_LIMIT.
const maxTasks = 4 << 20

// Task is a process in the images.
type Task struct {
	PID, PPID, PGID, SID uint32
	Threads              []uint32 // their TIDs, the leader's among them
	Zombie               bool     // has no memory
}

// Tasks lists the processes, parents before children.
func Tasks(dir string) ([]Task, error) {
	path := filepath.Join(dir, "pstree.img")
	im, err := readImage(path, magicPstree)
	if err != nil {
		return nil, err
	}
	tasks := make([]Task, 0, len(im.entries))
	seen := map[uint32]bool{}
	for i, b := range im.entries {
		var e pstree.PstreeEntry
		if err := proto.Unmarshal(b, &e); err != nil {
			return nil, fmt.Errorf("read image %s: %w: %w", path, ErrFormat, err)
		}
		t := Task{PID: e.GetPid(), PPID: e.GetPpid(), PGID: e.GetPgid(), SID: e.GetSid(), Threads: e.GetThreads()}
		if t.PID == 0 || t.PID > maxTasks || seen[t.PID] || i > 0 && !seen[t.PPID] || len(t.Threads) > maxTasks {
			return nil, fmt.Errorf("read image %s: task %d of parent %d: %w", path, t.PID, t.PPID, ErrFormat)
		}
		seen[t.PID] = true
		if _, err := os.Lstat(pidImage(dir, "mm", t.PID)); err != nil {
			if !os.IsNotExist(err) {
				return nil, fmt.Errorf("read images: %w", err)
			}
			t.Zombie = true
		}
		tasks = append(tasks, t)
	}
	if len(tasks) == 0 {
		return nil, fmt.Errorf("read image %s: no task: %w", path, ErrFormat)
	}
	return tasks, nil
}

// Thread holds the addresses that a thread needs before or while the kernel runs on its behalf.
type Thread struct {
	IP, SP, TLS, ClearTID uint64
	RobustList            uint64
	RobustListLen         uint32
	RSeq                  uint64
	RSeqSize              uint32
	AltStack, AltSize     uint64
}

// ReadThread reads the core image of a thread (x86-64).
func ReadThread(dir string, tid uint32) (Thread, error) {
	var c criucore.CoreEntry
	path := pidImage(dir, "core", tid)
	if _, err := readOne(path, magicCore, &c); err != nil {
		return Thread{}, err
	}
	x := c.GetThreadInfo()
	if c.GetMtype() != criucore.CoreEntry_X86_64 || x == nil {
		return Thread{}, fmt.Errorf("read image %s: not of x86-64: %w", path, ErrFormat)
	}
	tc := c.GetThreadCore()
	return Thread{
		IP: x.GetGpregs().GetIp(), SP: x.GetGpregs().GetSp(), TLS: x.GetGpregs().GetFsBase(), ClearTID: x.GetClearTidAddr(),
		RobustList: tc.GetFutexRla(), RobustListLen: tc.GetFutexRlaLen(),
		RSeq: tc.GetRseqEntry().GetRseqAbiPointer(), RSeqSize: tc.GetRseqEntry().GetRseqAbiSize(),
		AltStack: tc.GetSas().GetSsSp(), AltSize: tc.GetSas().GetSsSize(),
	}, nil
}

// Args is where the arguments and the environment lie, which ps and others read.
type Args struct{ ArgStart, ArgEnd, EnvStart, EnvEnd uint64 }

// ReadArgs reads them from the mm image of pid.
func ReadArgs(dir string, pid uint32) (Args, error) {
	var m mm.MmEntry
	if _, err := readOne(pidImage(dir, "mm", pid), magicMM, &m); err != nil {
		return Args{}, err
	}
	return Args{m.GetMmArgStart(), m.GetMmArgEnd(), m.GetMmEnvStart(), m.GetMmEnvEnd()}, nil
}
