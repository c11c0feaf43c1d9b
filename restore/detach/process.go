package detach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
)

// Arg is the hidden subcommand that runs Main.
const Arg = parts.Switch

// keep is what a switch needs: to trace any process and its seccomp filter, to go where it is and to change its mounts, to open any file and bind any
// name, to find the node of a socket, to hurry threads, and to send signals that were kept. Filters of system calls it can't have itself: who has one must not suspend another's.
var keep = []int{
	unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_CHOWN, unix.CAP_FOWNER,
	unix.CAP_SYS_NICE, unix.CAP_KILL, unix.CAP_NET_ADMIN, unix.CAP_CHECKPOINT_RESTORE,
}

// Main is the process of an Apart: one switch. It asks who has started it to settle; from then on it needs nobody, and if nobody is there it finishes
// alone. It holds nothing of the old file system, least of all its /dev/fuse, so it may wait for that. park, which may be nil, is called at points
// of the switch, for tests: stopped, settled, open, pivot, commit, release, switched.
func Main(log *slog.Logger, park func(point string)) error {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000\n"), 0)               // allowed with CAP_SYS_RESOURCE only
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}) // it opens all files of the tree; less works, too, for most
	if err := confine.Stage(confine.Limits{Keep: keep}); err != nil {
		return err
	}
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE) // it is over in a moment, and must come to its end
	unix.CloseOnExec(3)
	sock, err := fdpass.New(os.NewFile(3, "control"))
	if err != nil {
		return err
	}
	defer sock.Close()
	m, err := receive(sock)
	if err != nil {
		return err
	}
	var cfg config
	if m.op != opConfig || len(m.files) < 2 {
		fdpass.CloseAll(m.files)
		return fmt.Errorf("message %q with %d files", m.op, len(m.files))
	}
	defer fdpass.CloseAll(m.files) // before the end of the process, of which a thread may wait in the kernel
	if err := fdpass.Unpack(m.files[0], &cfg); err != nil {
		return err
	}
	if len(m.files) < 2+len(cfg.Streams) {
		return fmt.Errorf("%d files for %d streams", len(m.files), len(cfg.Streams))
	}
	p := &worker{sock: sock, group: m.files[1], log: log, answers: make(chan message, 1)}
	for i, link := range cfg.Streams {
		p.streams = append(p.streams, Stream{link, m.files[2+i]})
	}
	var d done
	d.Outcome, err = p.run(cfg, park)
	d.Failed = failureOf(err)
	if err := send(sock, opDone, d); err != nil {
		log.Warn("nobody hears how the switch has ended", "failed", d.Failed.Text, "err", err)
	}
	return nil
}

// worker is the state of Main.
type worker struct {
	sock    *fdpass.Socket
	group   *os.File // cgroup.procs
	streams []Stream
	log     *slog.Logger
	answers chan message
	note    []byte
}

type message struct {
	op    string
	files []*os.File
}

func receive(sock *fdpass.Socket) (message, error) {
	buf := make([]byte, 64)
	n, files, err := sock.Recv(buf)
	return message{string(buf[:n]), files}, err
}

func (p *worker) run(cfg config, park func(string)) (Outcome, error) {
	file, err := newOutcome(cfg.Outcome)
	if err != nil {
		return Outcome{}, err
	}
	defer file.drop()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go p.listen(cancel)
	o := Options{Tasks: p.tasks, MountNS: cfg.MountNS, Dev: cfg.Dev, Remote: cfg.Remote, Streams: p.streams, Settle: p.settle, Log: p.log, park: park}
	o.committed = func(r Report) {
		if err := file.publish(Outcome{r, p.note}); err != nil {
			p.log.Error("the tree is on its local files, but that could not be recorded", "err", err)
		}
	}
	rep, err := Switch(ctx, o)
	return Outcome{rep, p.note}, err
}

// listen takes what comes until the socket's end, which is Main's.
func (p *worker) listen(giveUp context.CancelCauseFunc) {
	for {
		m, err := receive(p.sock)
		switch {
		case err != nil:
			giveUp(errors.New("the agent is gone"))
			return
		case m.op == opSettled && len(m.files) == 1 && len(p.answers) == 0:
			p.answers <- m // has room
			continue
		case m.op == opStop:
			giveUp(errors.New("it was given up"))
		}
		fdpass.CloseAll(m.files)
	}
}

// settle asks.
func (p *worker) settle(ctx context.Context, inodes []uint64) (Local, error) {
	if err := send(p.sock, opSettle, inodes); err != nil {
		return Local{}, err
	}
	select {
	case m := <-p.answers:
		defer fdpass.CloseAll(m.files)
		var s settled
		if err := fdpass.Unpack(m.files[0], &s); err != nil {
			return Local{}, err
		}
		p.note = s.Note
		return s.Local, s.Failed.err()
	case <-ctx.Done():
		return Local{}, context.Cause(ctx)
	}
}

func (p *worker) tasks() ([]int, error) { return Tasks(p.group) }

// Tasks lists the processes of a cgroup by its cgroup.procs, which stays open.
func Tasks(procs *os.File) ([]int, error) {
	b, err := io.ReadAll(io.NewSectionReader(procs, 0, math.MaxInt64))
	if err != nil {
		return nil, err
	}
	var pids []int
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil || pid == 0 { // 0: of another PID namespace
			return nil, fmt.Errorf("process %q", f)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
