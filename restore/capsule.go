package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/wire"
)

// Hidden subcommands of this program: its os.Args[1].
const (
	GuardianArg = parts.Guardian
	HandlerArg  = parts.Handler
)

// killTimeout bounds how long Kill waits for a tree to be gone.
const killTimeout = 30 * time.Second

// ErrDead says that the guardian, and with it the capsule, is no more. ErrNotTold says so, too, of one that has not got what it was asked for.
var (
	ErrDead    = errors.New("the capsule is no more")
	ErrNotTold = fmt.Errorf("%w, and was before it could be asked", ErrDead)
)

// Options of a capsule. The zero value needs an ImagesDir and one of Fuse and BindRoot.
type Options struct {
	ID         wire.ID
	Free       Free   // default: Here
	CriuPath   string // with both empty criu.Find decides
	CriuPrefix string

	Dir       string   // the guardian's socket for the next agent is made there; empty: below ImagesDir
	ImagesDir string   // on tmpfs; "work" and "root" below it are the capsule's own
	Fuse      *os.File // /dev/fuse, served by the FUSE daemon: becomes the root. It stays the caller's
	BindRoot  string   // instead of Fuse: a directory
	Hostname  string   // empty: as here

	// PIDs are those of the tree's tasks and threads, and the sessions and process groups that they are in.
	PIDs []int32

	// Datagrams are names of this host's sockets that sockets of the tree will be connected to; abstract ones begin with a zero byte.
	Datagrams []string

	MemoryMax, CPUMax, PidsMax string // as in cgroup v2's files; empty: no limit

	Log *slog.Logger
}

func (o *Options) defaults() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Free == nil {
		o.Free = Here{}
	}
}

// A Capsule is a guardian and what lives below it.
type Capsule struct {
	o       Options
	log     *slog.Logger
	proc    *guardianProcess // nil before it is started
	ctl     *fdpass.Socket
	groups  *cgroups
	work    []string // directories to remove
	events  *eventQueue
	silent  chan struct{} // closed when the guardian's socket is
	dead    chan struct{} // closed when the guardian has been reaped
	readers sync.WaitGroup

	mu        sync.Mutex
	seq       uint64
	calls     map[uint64]chan answer
	early     *answer // to a call that has not been made yet
	handler   *Handler
	killing   bool
	leaving   bool // the guardian becomes another program, which does not talk
	closed    bool
	abandoned bool // it is to live on, and another agent has it
}

// startConfig is what stage 2 of the guardian begins with.
type startConfig struct {
	Prefix    string
	ImagesDir string
	WorkDir   string
	RootDir   string
	BindRoot  string
	Hostname  string
	Datagrams []string
	Debug     bool
}

// Start makes the capsule: cgroups, guardian, root. With a FUSE root it needs the daemon to answer.
func Start(ctx context.Context, o Options) (*Capsule, error) {
	o.defaults()
	if (o.Fuse == nil) == (o.BindRoot == "") {
		return nil, errors.New("make capsule: a FUSE descriptor or a directory is needed as root")
	}
	if err := reach(o.Datagrams); err != nil {
		return nil, fmt.Errorf("make capsule: %w", err)
	}
	prefix, err := criuPrefix(o)
	if err != nil {
		return nil, fmt.Errorf("make capsule: %w", err)
	}
	c := &Capsule{o: o, log: o.Log, calls: make(map[uint64]chan answer), events: newEventQueue(), silent: make(chan struct{}), dead: make(chan struct{})}
	if err := c.start(ctx, prefix); err != nil {
		if cerr := c.Close(); cerr != nil {
			c.log.Error("undo capsule", "err", cerr)
		}
		return nil, fmt.Errorf("make capsule: %w", err)
	}
	return c, nil
}

func (c *Capsule) start(ctx context.Context, prefix string) error {
	cfg := startConfig{
		Prefix: prefix, ImagesDir: c.o.ImagesDir, WorkDir: filepath.Join(c.o.ImagesDir, "work"), RootDir: filepath.Join(c.o.ImagesDir, "root"),
		BindRoot: c.o.BindRoot, Hostname: c.o.Hostname, Datagrams: c.o.Datagrams, Debug: c.log.Enabled(ctx, slog.LevelDebug),
	}
	for _, d := range []string{cfg.WorkDir, cfg.RootDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		c.work = append(c.work, d)
	}
	groups, err := makeCgroups(c.o.Free, groupName(c.o.ID), Limits{c.o.MemoryMax, c.o.CPUMax, c.o.PidsMax})
	if err != nil {
		return err
	}
	c.groups = groups
	for _, u := range groups.unset {
		c.log.Warn("limit of the tree cannot be set here", "limit", u)
		c.events.put(Event{Kind: EventProblem, Text: "limit of the tree cannot be set here: " + u})
	}
	group, err := os.Open(groups.dir(treeGroup))
	if err != nil {
		return fmt.Errorf("open tree's cgroup: %w", err)
	}
	defer group.Close()
	if err := c.fork(); err != nil {
		return err
	}
	dir := c.o.Dir
	if dir == "" {
		dir = cfg.WorkDir
	}
	next, err := fdpass.Bind(dir, SocketName)
	if err != nil {
		return err
	}
	defer next.Close()
	files := []*os.File{group, next}
	if c.o.Fuse != nil {
		files = append(files, c.o.Fuse)
	}
	if _, _, err := c.call(ctx, opStart, cfg, files...); err != nil {
		return fmt.Errorf("set up root: %w", err)
	}
	return nil
}

// fork starts the guardian's stage 1 in its namespaces and cgroup.
func (c *Capsule) fork() error {
	pids, err := fdpass.Pack(c.o.PIDs)
	if err != nil {
		return err
	}
	defer pids.Close()
	ctl, peer, err := fdpass.Pair()
	if err != nil {
		return err
	}
	defer peer.Close()
	group, err := os.Open(c.groups.dir(guardianGroup))
	if err != nil {
		ctl.Close()
		return fmt.Errorf("open guardian's cgroup: %w", err)
	}
	defer group.Close()
	p, err := c.o.Free.Start(parts.Spec{Name: GuardianArg, Files: []*os.File{peer, pids}, Cgroup: group})
	if err != nil {
		ctl.Close()
		return err
	}
	c.proc = &guardianProcess{pid: p.PID, part: p}
	c.ctl = ctl
	c.readers.Add(1)
	go c.read()
	return nil
}

// Kill ends everything in the capsule: first the tree, then the guardian (see the package's doc). May be called more than
// once, at any time.
func (c *Capsule) Kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	c.mu.Lock()
	h := c.handler
	c.killing = true
	c.mu.Unlock()
	if c.groups != nil && c.proc != nil {
		fuse := fuseConnections(c.proc.pid)
		if err := c.groups.kill(ctx, treeGroup, func() error { return c.o.Free.AbortFuse(fuse) }); err != nil {
			return fmt.Errorf("kill tree: %w", err)
		}
		if err := c.killGuardian(ctx); err != nil {
			return fmt.Errorf("kill guardian: %w", err)
		}
	}
	if h != nil {
		h.stop()
	}
	return nil
}

func (c *Capsule) killGuardian(ctx context.Context) error {
	if err := c.proc.kill(); err != nil {
		return err
	}
	// It may be about to mount its root.
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		if err := c.o.Free.AbortFuse(fuseConnections(c.proc.pid)); err != nil {
			return err
		}
		select {
		case <-c.dead:
			return c.groups.kill(ctx, guardianGroup, nil)
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}

// Close is Kill, and removes what is left: cgroups and directories. May be called more than once; after an error it goes on.
func (c *Capsule) Close() error {
	if err := c.Kill(); err != nil {
		return err
	}
	c.mu.Lock()
	done := c.closed
	c.closed = true
	c.mu.Unlock()
	if !done {
		if c.ctl != nil {
			c.ctl.Close()
		}
		c.readers.Wait()
		c.events.close()
	}
	var errs []error
	if c.groups != nil {
		errs = append(errs, c.groups.remove())
	}
	for _, d := range c.work {
		if err := os.RemoveAll(d); err != nil {
			errs = append(errs, fmt.Errorf("remove directory: %w", err))
		}
	}
	return errors.Join(errs...)
}

// PID of the guardian in this PID namespace.
func (c *Capsule) PID() int { return c.proc.pid }

// Done is closed when the guardian has ended.
func (c *Capsule) Done() <-chan struct{} { return c.dead }

// criuPrefix is a directory with usr/sbin/criu and its libraries, which stays reachable when the root is another.
func criuPrefix(o Options) (string, error) {
	path, prefix := o.CriuPath, o.CriuPrefix
	if path == "" && prefix == "" {
		var err error
		if path, prefix, err = criu.Find(""); err != nil {
			return "", err
		}
	}
	if prefix == "" {
		p, ok := strings.CutSuffix(path, "/usr/sbin/criu")
		if !ok {
			return "", fmt.Errorf("criu at %s has no directory of libraries beside it; remedy: lazymig setup", path)
		}
		prefix = p + "/"
	}
	return prefix, nil
}
