package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/wire"
)

// Hidden subcommands of the program that Options.Exe names: its os.Args[1].
const (
	GuardianArg = "guardian"
	HandlerArg  = "handler"
)

// killTimeout bounds how long Kill waits for a tree to be gone.
const killTimeout = 30 * time.Second

// ErrDead says that the guardian, and with it the capsule, is no more.
var ErrDead = errors.New("the capsule is no more")

// Options of a capsule. The zero value needs an ImagesDir and one of Fuse and BindRoot.
type Options struct {
	ID         wire.ID
	Exe        string // default: this program
	CriuPath   string // with both empty criu.Find decides
	CriuPrefix string

	ImagesDir string   // on tmpfs; "work" and "root" below it are the capsule's own
	Fuse      *os.File // /dev/fuse, served by the FUSE daemon: becomes the root. It stays the caller's
	BindRoot  string   // instead of Fuse: a directory
	Hostname  string   // empty: as here

	// PIDs are those of the tree's tasks and threads, and the sessions and process groups that they are in.
	PIDs []int32

	MemoryMax, CPUMax, PidsMax string // as in cgroup v2's files; empty: no limit

	Stderr *os.File // of guardian and handler; default: this process's
	Log    *slog.Logger
}

// A Capsule is a guardian and what lives below it.
type Capsule struct {
	o       Options
	log     *slog.Logger
	cmd     *exec.Cmd
	ctl     *fdpass.Socket
	groups  *cgroups
	work    []string // directories to remove
	events  *eventQueue
	dead    chan struct{} // closed when the guardian has been reaped
	readers sync.WaitGroup

	mu      sync.Mutex
	seq     uint64
	calls   map[uint64]chan answer
	early   *answer // to a call that has not been made yet
	handler *Handler
	killing bool
	closed  bool
}

type answer struct {
	m     message
	files []*os.File
}

// startConfig is what stage 2 of the guardian begins with.
type startConfig struct {
	Prefix    string
	ImagesDir string
	WorkDir   string
	RootDir   string
	BindRoot  string
	Hostname  string
	Debug     bool
}

// Start makes the capsule: cgroups, guardian, root. With a FUSE root it needs the daemon to answer.
func Start(ctx context.Context, o Options) (*Capsule, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if (o.Fuse == nil) == (o.BindRoot == "") {
		return nil, errors.New("make capsule: a FUSE descriptor or a directory is needed as root")
	}
	if o.Exe == "" {
		var err error
		if o.Exe, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("make capsule: %w", err)
		}
	}
	prefix, err := criuPrefix(o)
	if err != nil {
		return nil, fmt.Errorf("make capsule: %w", err)
	}
	c := &Capsule{o: o, log: o.Log, calls: make(map[uint64]chan answer), events: newEventQueue(), dead: make(chan struct{})}
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
		BindRoot: c.o.BindRoot, Hostname: c.o.Hostname, Debug: c.log.Enabled(ctx, slog.LevelDebug),
	}
	for _, d := range []string{cfg.WorkDir, cfg.RootDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		c.work = append(c.work, d)
	}
	groups, err := makeCgroups(groupName(c.o.ID), Limits{c.o.MemoryMax, c.o.CPUMax, c.o.PidsMax})
	if err != nil {
		return err
	}
	c.groups = groups
	for _, u := range groups.unset {
		c.log.Warn("limit of the tree cannot be set here", "limit", u)
		c.events.put(Event{Kind: EventProblem, Text: "limit of the tree cannot be set here: " + u})
	}
	procs, err := os.OpenFile(filepath.Join(groups.dir(treeGroup), "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open tree's cgroup: %w", err)
	}
	defer procs.Close()
	if err := c.fork(); err != nil {
		return err
	}
	files := []*os.File{procs}
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
	pids, err := sealedCopy(c.o.PIDs)
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
	c.cmd = &exec.Cmd{
		Path: c.o.Exe, Args: []string{"lazymig", GuardianArg, stageWindow},
		Env: []string{"PATH=" + os.Getenv("PATH"), criu.PreloadEnv + "=" + os.Getenv(criu.PreloadEnv)}, Stdout: c.o.Stderr, Stderr: c.o.Stderr, ExtraFiles: []*os.File{peer, pids},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
			Setsid:     true, UseCgroupFD: true, CgroupFD: int(group.Fd()),
		},
	}
	if err := c.cmd.Start(); err != nil {
		c.cmd = nil
		ctl.Close()
		return fmt.Errorf("start guardian: %w", err)
	}
	c.ctl = ctl
	c.readers.Add(1)
	go c.read()
	return nil
}

// read takes what the guardian says until its end, then reaps it.
func (c *Capsule) read() {
	defer c.readers.Done()
	r := newReceiver(c.ctl)
	for reset := false; ; {
		m, files, err := r.next()
		if errors.Is(err, unix.ECONNRESET) && !reset {
			// The guardian ended without having read all. The kernel tells that first, once; what it said stands behind.
			reset = true
			continue
		}
		if err != nil {
			if !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.ECONNRESET) {
				c.log.Error("guardian", "err", err)
			}
			break
		}
		switch m.Op {
		case opEvent:
			fdpass.CloseAll(files)
			var e Event
			if err := json.Unmarshal(m.Body, &e); err != nil {
				c.log.Error("decode guardian's event", "err", err)
				continue
			}
			c.events.put(e)
		case opAnswer:
			c.mu.Lock()
			ch := c.calls[m.Seq]
			delete(c.calls, m.Seq)
			early := ch == nil && m.Seq > c.seq && c.early == nil && len(files) == 0
			if early { // why it cannot even begin
				c.early = &answer{m: m}
			}
			c.mu.Unlock()
			if early {
				continue
			}
			if ch == nil {
				fdpass.CloseAll(files)
				continue
			}
			ch <- answer{m, files}
		default:
			fdpass.CloseAll(files)
			c.log.Error("guardian", "err", errMessage, "op", m.Op)
		}
	}
	// Its socket is closed, so it is about to end; make sure of it before anybody waits for ever.
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.log.Error("kill guardian", "err", err)
	}
	if err := c.cmd.Wait(); err != nil {
		c.log.Debug("guardian ended", "how", err)
	}
	close(c.dead)
	c.events.end()
}

// call sends one request to the guardian and waits for its answer, whose descriptors are the caller's.
func (c *Capsule) call(ctx context.Context, op string, body any, files ...*os.File) (message, []*os.File, error) {
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.closed || c.ctl == nil {
		c.mu.Unlock()
		return message{}, nil, ErrDead
	}
	c.seq++
	seq := c.seq
	if a := c.early; a != nil && a.m.Seq == seq {
		c.early = nil
		c.mu.Unlock()
		return a.result()
	}
	c.calls[seq] = ch
	c.mu.Unlock()
	err := sendMessage(c.ctl, message{Op: op, Seq: seq}, body, files...)
	if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) { // those: it has ended, perhaps with an answer
		c.forget(seq, ch)
		return message{}, nil, err
	}
	select {
	case a := <-ch:
		return a.result()
	case <-c.dead:
		select {
		case a := <-ch: // it came just before
			return a.result()
		default:
		}
		c.forget(seq, ch)
		return message{}, nil, errors.Join(ErrDead, err)
	case <-ctx.Done():
		c.forget(seq, ch)
		return message{}, nil, context.Cause(ctx)
	}
}

func (a answer) result() (message, []*os.File, error) {
	if a.m.Err != nil {
		fdpass.CloseAll(a.files)
		return a.m, nil, a.m.Err
	}
	return a.m, a.files, nil
}

// forget drops a call whose answer nobody waits for any more.
func (c *Capsule) forget(seq uint64, ch chan answer) {
	c.mu.Lock()
	_, waiting := c.calls[seq]
	delete(c.calls, seq)
	c.mu.Unlock()
	if waiting {
		return
	}
	select { // read has taken ch out: the answer is in it or about to be
	case a := <-ch:
		fdpass.CloseAll(a.files)
	case <-c.dead:
	}
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
	if c.groups != nil && c.cmd != nil {
		fuse := fuseConnections(c.cmd.Process.Pid)
		if err := c.groups.kill(ctx, treeGroup, func() error { return abortFuse(fuse) }); err != nil {
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
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	// It may be about to mount its root.
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		if err := abortFuse(fuseConnections(c.cmd.Process.Pid)); err != nil {
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

// Close is Kill, and removes what is left: cgroups and directories. May be called more than once.
func (c *Capsule) Close() error {
	if err := c.Kill(); err != nil {
		return err
	}
	c.mu.Lock()
	done := c.closed
	c.closed = true
	c.mu.Unlock()
	if done {
		return nil
	}
	if c.ctl != nil {
		c.ctl.Close()
	}
	c.readers.Wait()
	c.events.close()
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
func (c *Capsule) PID() int { return c.cmd.Process.Pid }

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
