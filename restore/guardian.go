package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/lograte"
)

// Stages of the guardian: its os.Args[2].
const (
	stageWindow = "window" // as package parts starts it
	stageServe  = "serve"
)

// Descriptors that the processes begin with. A handler has the guardian's socket where a guardian has the tree's PIDs.
const (
	controlFD = 3 // socket to the agent
	pidsFD    = 4 // memfd with the PIDs of the tree
)

// GuardianMain is the hidden subcommand GuardianArg. It never returns.
func GuardianMain() {
	// Else the first line of the log reads /etc/localtime, which lies in the tree's root by then: on FUSE, which may wait for a source that is gone.
	time.Local = time.UTC
	err := errors.New("the guardian is started by an agent, not by hand")
	if len(os.Args) > 2 && os.Getpid() == 1 {
		switch os.Args[2] {
		case stageWindow:
			err = guardianWindow()
		case stageServe:
			err = guardianServe()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lazymig guardian:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// guardianWindow is stage 1: a proc of the new PID namespace, and the PIDs that follow out of the tree's way. The runtime's
// threads of this stage have low numbers, perhaps the tree's: exec ends them.
func guardianWindow() error {
	err := window()
	if err == nil {
		err = unix.Exec("/proc/self/exe", []string{os.Args[0], GuardianArg, stageServe}, os.Environ())
	}
	// Why is the answer to the agent's first call, which waits for stage 2.
	if ctl, cerr := fdpass.New(os.NewFile(controlFD, "control")); cerr == nil {
		err = errors.Join(err, sendMessage(ctl, message{Op: opAnswer, Seq: firstSeq, Err: textOf(err)}, nil))
	}
	return err
}

func window() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	pids, most, err := treePIDs()
	if err != nil {
		return err
	}
	base, err := pidWindow(pids, most)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(base)), 0); err != nil {
		return fmt.Errorf("set last PID: %w", err)
	}
	return nil
}

// treePIDs are what the agent gave, and the limit of the namespace.
func treePIDs() (pids []int32, most int, err error) {
	fd, err := unix.FcntlInt(pidsFD, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, 0, fmt.Errorf("take the tree's PIDs: %w", err)
	}
	f := os.NewFile(uintptr(fd), "pids")
	defer f.Close()
	if err := fdpass.Unpack(f, &pids); err != nil {
		return nil, 0, err
	}
	most, err = pidMax()
	return pids, most, err
}

// guardian is stage 2.
type guardian struct {
	log    *slog.Logger
	ctls   controls
	cfg    startConfig
	dirs   capsuleDirs
	group  *os.File // the tree's cgroup
	hub    *hub
	holder int32 // PID, see holder.go

	covered bool         // /run, see warm.go; start's, then the restore's
	warm    *criu.Worker // may be nil
	kept    map[uint32]*os.File

	huge     *collapsing // nil before the drain
	cores    *cores      // nil when nothing is lazy, and before the release
	mu       sync.Mutex
	restore  *restoring // nil before opRestore
	outlives bool       // the agent may go away
	drained  *Event     // for the next agent
	exited   *Event
}

func guardianServe() error {
	// PID 1 of a tree that may be root: it does not end by a signal of the tree's. Caught, not ignored: ignored ones would
	// be inherited by criu. SIGPIPE: the agent's end of stderr may be gone.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGALRM, unix.SIGVTALRM, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	_ = os.WriteFile("/proc/self/comm", []byte("lazymig"), 0)          // a nicer name than "exe"
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000\n"), 0) // allowed with CAP_SYS_RESOURCE only
	unix.CloseOnExec(controlFD)
	hurry()
	ctl, err := fdpass.New(os.NewFile(controlFD, "control"))
	if err != nil {
		return err
	}
	pids, most, err := treePIDs()
	if err != nil {
		return err
	}
	unix.Close(pidsFD)
	holder := holderPID(pids, most)
	if err := startHolder(holder); err != nil {
		return err
	}
	log := slog.New(lograte.New(slog.NewTextHandler(os.Stderr, nil))).With("process", "guardian")
	g := &guardian{ctls: controls{cur: ctl, next: make(chan *fdpass.Socket)}, holder: holder, kept: map[uint32]*os.File{}, log: log}
	g.hub = newHub(g.log, g.event)
	return g.serve()
}

// serve handles what the agent says, one message after the other; what takes long runs beside. When the agent goes away before it
// has asked for the grant, so does the capsule: nothing has run in it. After that the next agent is waited for.
func (g *guardian) serve() error {
	for {
		r := newReceiver(g.ctls.now())
		for {
			m, files, err := r.next()
			if err == nil {
				m.from = r.s
				g.handle(m, files)
				continue
			}
			if errors.Is(err, errMessage) {
				continue
			}
			if !g.mayOutlive() {
				return fmt.Errorf("agent is lost before the question: %w", err)
			}
			g.log.Warn("agent is lost; the tree stays as it is", "err", err)
			break
		}
		g.ctls.change()
	}
}

func (g *guardian) mayOutlive() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.outlives
}

func (g *guardian) handle(m message, files []*os.File) {
	switch m.Op {
	case opStart:
		g.answer(m, g.start(m, files), nil)
	case opRestore:
		go g.doRestore(m, files)
	case opOutlive:
		g.answer(m, g.outlive(), nil)
	case opAgain:
		g.again(m)
	case opFinish:
		go g.doFinish(m)
	case opRelease:
		go g.doRelease(m)
	case opDrain:
		var d drainConfig
		err := json.Unmarshal(m.Body, &d)
		if err == nil {
			err = g.hub.drain(d.Hold)
		}
		if err == nil && !d.Hold {
			g.startCollapse()
		}
		g.answer(m, err, nil)
	case opAhead:
		go func() { g.answer(m, g.takeAhead(files), nil) }()
	case opHot:
		go func() { g.answer(m, g.takeHot(files), nil) }()
	case opAttach:
		if len(files) != 1 {
			fdpass.CloseAll(files)
			g.answer(m, errMessage, nil)
			return
		}
		g.answer(m, g.hub.attach(files[0]), nil)
	case opKeep, opDrop:
		g.answer(m, g.keep(m, files), nil)
	case opKept:
		fdpass.CloseAll(files)
		g.tellKept(m)
	case opLeave:
		g.leave(m)
	default:
		fdpass.CloseAll(files)
		g.answer(m, fmt.Errorf("%w: %q", errMessage, m.Op), nil)
	}
}

// answer answers a call. An agent that is gone needs none.
func (g *guardian) answer(m message, err error, body any, files ...*os.File) {
	if serr := sendMessage(m.from, message{Op: opAnswer, Seq: m.Seq, Err: textOf(err)}, body, files...); serr != nil {
		g.log.Warn("answer agent", "op", m.Op, "err", serr)
	}
}

func (g *guardian) event(e Event) {
	g.mu.Lock()
	switch e.Kind {
	case EventDrained:
		g.drained = &e
	case EventExited:
		g.exited = &e
	}
	g.mu.Unlock()
	if err := sendMessage(g.ctls.now(), message{Op: opEvent}, e); err != nil {
		g.log.Warn("tell agent", "event", e.Kind, "text", e.Text, "err", err)
	}
}

func (g *guardian) problem(err error) {
	g.log.Error("problem", "err", err)
	g.event(Event{Kind: EventProblem, Text: err.Error()})
}

func (g *guardian) start(m message, files []*os.File) error {
	if err := json.Unmarshal(m.Body, &g.cfg); err != nil {
		fdpass.CloseAll(files)
		return fmt.Errorf("decode configuration: %w", err)
	}
	if g.cfg.Debug {
		g.log = slog.New(lograte.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))).With("process", "guardian")
		g.hub.log = g.log
	}
	want := 3
	if g.cfg.BindRoot != "" {
		want = 2
	}
	if len(files) != want || g.group != nil {
		fdpass.CloseAll(files)
		return errMessage
	}
	g.group = files[0]
	if err := g.ctls.listen(files[1], g.mayOutlive, g.log); err != nil {
		return err
	}
	var fuse *os.File
	if want == 3 {
		fuse = files[2]
	}
	var err error
	if g.dirs, err = openDirs(g.cfg); err != nil {
		return err
	}
	if err := setUpRoot(g.cfg, fuse); err != nil {
		return err
	}
	if g.cfg.Hostname != "" {
		if err := unix.Sethostname([]byte(g.cfg.Hostname)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	g.warmUp()
	return nil
}

// reap is PID 1's duty, from criu's end on (before, criu's and Wait's children must not be taken from them). It ends the
// guardian when no process is left but the holder, which plain waits do not see: those that are handed to PID 1 have
// SIGCHLD as their exit signal.
func (g *guardian) reap(root int) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			if awaitGuest() {
				continue
			}
			g.cores.last()
			g.hub.close()
			os.Exit(0)
		case err != nil:
			g.problem(fmt.Errorf("wait for children: %w", err))
			os.Exit(1)
		default:
			g.cores.ended(pid, ws)
			if pid == root {
				g.event(Event{Kind: EventExited, Status: int(ws)})
			}
		}
	}
}
