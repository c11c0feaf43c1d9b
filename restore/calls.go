package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/restore/detach"
	"github.com/lazymig/lazymig/restore/memory"
)

// EarlyPage is a page that is never lazy: it is there before the release.
type EarlyPage struct {
	Task uint32
	Addr uint64
	Data []byte // one page
}

// Fixup is what CRIU loses without a word, of one thread.
type Fixup struct {
	TID          int32
	Affinity     []uint64 // mask, lowest CPUs first; empty: as it is
	TimerSlackNS uint64   // 0: as it is
	IOPrio       int      // 0: as it is
	KSM          bool     // PR_SET_MEMORY_MERGE, of the whole process, whose first thread this is
}

// Inherit is a file that CRIU uses instead of one that the tree shared with others, under the name that it gives it:
// "pipe:[123]", "socket:[123]", "/path". The file stays the caller's.
type Inherit struct {
	Key  string
	File *os.File
}

// RestoreOptions of one restore. LogLevel is CRIU's; 0 is errors only.
type RestoreOptions struct { //nolint:revive // Options are the capsule's
	Tasks   []memory.TaskMem // what comes lazily
	Early   []EarlyPage
	Fixups  []Fixup
	Inherit []Inherit
	// Databases are given their new numbers.
	Databases []Database
	Locks     []detach.Lock // that CRIU loses, with PIDs in the capsule: taken again just after the first instruction
	Parts     int           // ranges that the source takes in one request for pages; 0: one

	TCPClose, ShellJob bool
	Datagrams          bool // there are Options.Datagrams
	// NotLazy restores memory from the images alone.
	NotLazy  bool
	LogLevel int
}

// restoreConfig is RestoreOptions on its way to the guardian.
type restoreConfig struct {
	Tasks                                  []memory.TaskMem
	Early                                  []EarlyPage
	Fixups                                 []Fixup
	Databases                              []Database
	Locks                                  []detach.Lock
	Keys                                   []string // of the inherited files
	TCPClose, ShellJob, Datagrams, NotLazy bool
	LogLevel, Parts                        int
}

const maxInherit = 32 // descriptors in one message

// Restore restores the tree and returns when it is held at post-restore: not one of its instructions has run, and only
// Release lets it. Pages that CRIU itself touches come through the handler, so its lanes should be there. After an error
// or a cancelled context the capsule is of no use: Close it.
func (c *Capsule) Restore(ctx context.Context, o RestoreOptions) error {
	if len(o.Inherit) > maxInherit {
		return fmt.Errorf("restore: %d inherited files where %d are allowed", len(o.Inherit), maxInherit)
	}
	cfg := restoreConfig{
		Tasks: o.Tasks, Early: o.Early, Fixups: o.Fixups, Databases: o.Databases, Locks: o.Locks,
		TCPClose: o.TCPClose, ShellJob: o.ShellJob, Datagrams: o.Datagrams, NotLazy: o.NotLazy, LogLevel: o.LogLevel, Parts: o.Parts,
	}
	files := []*os.File{nil}
	for _, in := range o.Inherit {
		cfg.Keys = append(cfg.Keys, in.Key)
		files = append(files, in.File)
	}
	f, err := fdpass.Pack(cfg)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer f.Close()
	files[0] = f
	if _, _, err := c.call(ctx, opRestore, nil, files...); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

// Resumed tells of a tree that runs.
type Resumed struct {
	At  time.Time // CLOCK_REALTIME just before its first instruction could run
	PID int       // of its root task in this process's PID namespace
}

type resumedAnswer struct {
	At  int64 // ns
	PID int   // in the capsule
}

// Finish lets criu do what is left before the tree's first instruction, such as removing names that it made; what is decided has to be
// decided before, because a failure here can't be undone. Release follows, once.
func (c *Capsule) Finish(ctx context.Context) error {
	if _, _, err := c.call(ctx, opFinish, nil); err != nil {
		return fmt.Errorf("finish restore: %w", err)
	}
	return nil
}

// Release lets the held tree run, after Finish or with it. An error after the guardian has begun leaves the capsule as it is: whether the tree
// runs is not known then.
func (c *Capsule) Release(ctx context.Context) (Resumed, error) {
	m, files, err := c.call(ctx, opRelease, nil)
	if err != nil {
		return Resumed{}, fmt.Errorf("release: %w", err)
	}
	defer fdpass.CloseAll(files)
	var a resumedAnswer
	if err := json.Unmarshal(m.Body, &a); err != nil || len(files) != 1 {
		return Resumed{}, fmt.Errorf("release: %w", errors.Join(errMessage, err))
	}
	r := Resumed{At: time.Unix(0, a.At)}
	if r.PID, err = pidOf(files[0]); err != nil {
		c.log.Warn("the tree has run and its root task has ended already", "err", err)
	}
	return r, nil
}

// pidOf translates a pidfd to a PID of this process's namespace.
func pidOf(pidfd *os.File) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd()))
	if err != nil {
		return 0, fmt.Errorf("read pidfd: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil || pid <= 0 {
				return 0, fmt.Errorf("read pidfd: %w", unix.ESRCH)
			}
			return pid, nil
		}
	}
	return 0, fmt.Errorf("read pidfd: %w", unix.EINVAL)
}

// drainConfig is the body of opDrain.
type drainConfig struct {
	Hold bool // what was copied ahead is not placed yet
}

// StartDrain lets all pages that are still at the source be pushed, and those that were copied ahead be placed, now or, if hold is set, when it is called
// again. Drained comes as an event, and with hold, before that, Filled.
func (c *Capsule) StartDrain(hold bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, _, err := c.call(ctx, opDrain, drainConfig{hold}); err != nil {
		return fmt.Errorf("start drain: %w", err)
	}
	return nil
}

const callTimeout = 30 * time.Second
