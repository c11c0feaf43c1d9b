package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/lazyfs"
)

// FuseKeeperArg is the hidden subcommand that runs FuseKeeperMain.
const FuseKeeperArg = parts.FuseKeeper

// FuseKeeperMain is the daemon's parent; os.Args[2] is the migration's directory. It passes on what agent and daemon say to each other, keeps /dev/fuse from the question for the grant on, and starts
// the next daemon when one dies; the tree waits meanwhile. It survives the agent.
//
// Who dies with whom: a mount must be neither lost with one process nor held by one that can't be killed. The last descriptor of /dev/fuse
// ends a connection, and only that (or its abort) ends the wait of a process for an answer, even of a killed one. So who holds it must never wait for the mount
// itself: not the guardian, whose root it is, but this process, which opens no file after its start.
//
//	daemon dies before it holds     so does the keeper: the mount ends, the migration is given up
//	daemon dies later               the next takes over; before Linux 6.9, where requests can't be sent again, the mount ends
//	keeper dies                     the agent, which has a copy of /dev/fuse, ends the daemon and starts both again
//	agent dies                      keeper and daemon go on; files that come over the network wait if the lane is lost, too, for the next agent (fuseSocket)
//	mount ends                      daemon and keeper wait for the agent's last words, and end when it says so or is gone
func FuseKeeperMain(log *slog.Logger) error {
	if len(os.Args) != 3 {
		return errors.New("the FUSE daemon's keeper is started by the agent, not by hand")
	}
	raiseFiles() // the daemon's limit, which it may not raise itself
	if err := confine.Stage(fuseLimits(os.Args[2])); err != nil {
		return err
	}
	if err := confine.Refuse(confine.Machine()...); err != nil { // the daemon refuses more
		return err
	}
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGPIPE) // a terminal's signals are the agent's business
	unix.CloseOnExec(3)
	agent, err := fdpass.New(os.NewFile(3, "control"))
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	k := &fuseKeeper{exe: exe, log: log, agent: agent, kept: -1, heard: make(chan keeperEvent), next: make(chan *fdpass.Socket)}
	go k.hear(agent)
	err = k.run()
	k.end()
	return err
}

// fuseKeeper is driven by one goroutine; others listen for it, each to one socket, and end with that.
type fuseKeeper struct {
	exe   string
	log   *slog.Logger
	agent *fdpass.Socket // nil: it is gone
	heard chan keeperEvent
	next  chan *fdpass.Socket // other agents

	cfg      *fuseConfig // for the next daemon
	kept     int         // /dev/fuse, -1 before it is held
	outlives bool        // the agent may go away
	laneless bool        // the daemon waits for a connection
	over     bool        // the mount is gone
	child    *exec.Cmd   // nil: there is none
	sock     *fdpass.Socket
	born     time.Time
	pause    time.Duration
}

// keeperEvent is a message of the agent or the daemon, or the end of its socket.
type keeperEvent struct {
	from  *fdpass.Socket
	raw   []byte
	m     fuseMsg
	files []*os.File
	err   error
}

func (k *fuseKeeper) hear(s *fdpass.Socket) {
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := s.Recv(buf)
		e := keeperEvent{from: s, files: files, err: err}
		if err == nil {
			e.raw = append([]byte(nil), buf[:n]...)
			if err := json.Unmarshal(e.raw, &e.m); err != nil {
				k.log.Error("message to the FUSE daemon's keeper", "err", err)
				fdpass.CloseAll(files)
				continue
			}
		}
		k.heard <- e
		if err != nil {
			return
		}
	}
}

// fuseSocket is where another agent finds the keeper, in the migration's directory.
const fuseSocket = "fuse.sock"

// listen waits for other agents. The socket of a keeper before this one is of no use any more.
func (k *fuseKeeper) listen() error {
	if err := os.Remove(filepath.Join(k.cfg.StoreDir, fuseSocket)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old socket: %w", err)
	}
	f, err := fdpass.Bind(k.cfg.StoreDir, fuseSocket)
	if err != nil {
		return err
	}
	return fdpass.Listen(f, func(s *fdpass.Socket) { k.next <- s }, func(err error) { k.log.Error("connection of an agent", "err", err) })
}

// follow makes s the agent and tells it what it must know. It takes the place of another one.
func (k *fuseKeeper) follow(s *fdpass.Socket) {
	if !k.outlives {
		k.log.Warn("agent refused: there is one, and nothing to outlive that")
		s.Close()
		return
	}
	if k.agent != nil {
		k.tell(encode(fuseMsg{Op: "replaced"}))
		k.agent.Shutdown() // who listens to it closes it
	}
	k.agent = s
	go k.hear(s)
	k.tell(encode(fuseMsg{Op: "config", Config: k.cfg}))
	if k.kept >= 0 {
		f, err := fdpass.File(k.kept, "/dev/fuse")
		if err != nil {
			k.log.Error("give /dev/fuse to agent", "err", err)
			return
		}
		k.tell(encode(fuseMsg{Op: "keep"}), f)
		f.Close()
	}
	if k.laneless {
		k.tell(encode(fuseMsg{Op: "lost"}))
	}
}

// A daemon that lived shorter than longLife is followed by the next after a pause, twice as long each time.
const (
	daemonLongLife = 5 * time.Second
	daemonPauseMin = 10 * time.Millisecond
	daemonPauseMax = time.Second
)

// run ends with the mount, or with agent or daemon where nothing can or need be kept.
func (k *fuseKeeper) run() error {
	k.pause = daemonPauseMin
	var again <-chan time.Time
	look := time.NewTicker(mountLook)
	defer look.Stop()
	for {
		var e keeperEvent
		select {
		case e = <-k.heard:
		case s := <-k.next:
			k.follow(s)
			continue
		case <-look.C:
			if k.agent == nil && k.kept >= 0 && mountGone(k.kept) {
				return nil // a daemon without a connection does not see that
			}
			continue
		case <-again:
			again = nil
			if err := k.start(nil); err != nil {
				k.log.Error("start the next FUSE daemon", "err", err)
				again = time.After(k.backoff())
			}
			continue
		}
		switch {
		case e.from == k.agent && e.err != nil:
			k.agent.Close()
			k.agent = nil
			if !k.outlives || k.over {
				return nil
			}
			k.log.Warn("the agent is gone; the tree's files are served on", "err", e.err)
		case e.from == k.agent:
			if done, err := k.fromAgent(e); done || err != nil {
				return err
			}
		case e.from != k.sock: // of a daemon that has been buried, or an agent that was replaced
			fdpass.CloseAll(e.files)
			if e.err != nil {
				e.from.Close()
			}
		case e.err == nil && e.m.Op == "unmounted":
			if k.over = true; k.agent == nil {
				return nil
			}
		case e.err == nil:
			k.fromDaemon(e)
		default:
			err := k.bury()
			switch {
			case k.over:
				return nil
			case k.kept < 0:
				return fmt.Errorf("FUSE daemon has ended: %w", err)
			}
			if err := lazyfs.Resend(k.kept); err != nil { // for the next one; until then whoever waits can be killed
				k.log.Debug("FUSE requests of the daemon that died", "err", err)
			}
			k.log.Error("FUSE daemon has died; the next takes over", "err", err, "state", "the tree waits for files meanwhile")
			again = time.After(k.backoff())
		}
	}
}

// mountLook is how often a keeper without an agent looks whether its mount is still there.
const mountLook = time.Second

// mountGone says whether a connection has ended (fs/fuse/dev.c, fuse_dev_poll).
func mountGone(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLERR != 0
}

// backoff is how long to wait before the next start.
func (k *fuseKeeper) backoff() time.Duration {
	if time.Since(k.born) > daemonLongLife {
		k.pause = daemonPauseMin
	}
	p := k.pause
	k.pause = min(2*k.pause, daemonPauseMax)
	return p
}

// fromAgent handles what concerns the keeper and passes all else on. True: the agent wants the end.
func (k *fuseKeeper) fromAgent(e keeperEvent) (bool, error) {
	defer fdpass.CloseAll(e.files)
	switch {
	case e.m.Op == "end":
		return true, nil
	case e.m.Op == "config" && k.cfg == nil && e.m.Config != nil && len(e.files) == 1:
		k.cfg = e.m.Config
		if err := k.listen(); err != nil {
			return false, err
		}
		if !k.cfg.TakeOver {
			return false, k.start(e.files[0])
		}
		var err error
		k.outlives = true
		if k.kept, err = fdpass.Number(e.files[0]); err != nil {
			return false, err
		}
		return false, k.start(nil)
	case e.m.Op == "outlive":
		k.outlives = true
	case e.m.Op == "granted":
		k.outlives, k.cfg.Granted, k.cfg.Granting = true, true, true
	case e.m.Op == "lane":
		k.laneless = k.sock == nil
	}
	if k.sock == nil { // between two daemons: a lane is asked for again
		return false, nil
	}
	if err := k.sock.Send(e.raw, e.files...); err != nil {
		k.log.Warn("pass message on to FUSE daemon", "op", e.m.Op, "err", err) // its end is heard
	}
	return false, nil
}

func (k *fuseKeeper) fromDaemon(e keeperEvent) {
	defer fdpass.CloseAll(e.files)
	switch e.m.Op {
	case "granted":
		k.cfg.Granting = false
	case "lost":
		k.laneless = true
	}
	if e.m.Op == "keep" && len(e.files) == 1 && k.kept < 0 {
		k.tell(e.raw, e.files...)
		var err error
		if k.kept, err = fdpass.Number(e.files[0]); err != nil {
			k.log.Error("keep /dev/fuse", "err", err)
			k.kept = -1
		}
		return
	}
	k.tell(e.raw, e.files...)
}

// tell tells the agent, if there is one.
func (k *fuseKeeper) tell(raw []byte, files ...*os.File) {
	if k.agent == nil {
		return
	}
	if err := k.agent.Send(raw, files...); err != nil {
		k.log.Warn("tell agent of the FUSE daemon", "err", err) // its end is heard
	}
}

// start starts a daemon on dev, or one that takes over what is kept.
func (k *fuseKeeper) start(dev *os.File) error {
	cfg := *k.cfg
	cfg.TakeOver = dev == nil
	if cfg.TakeOver {
		var err error
		if dev, err = fdpass.File(k.kept, "/dev/fuse"); err != nil {
			return err
		}
		defer dev.Close()
	}
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return fmt.Errorf("start FUSE daemon: %w", err)
	}
	defer peer.Close()
	cmd := exec.Command(k.exe, FuseDaemonArg)
	cmd.ExtraFiles, cmd.Stderr, cmd.Dir = []*os.File{peer}, os.Stderr, "/"
	k.born = time.Now()
	if err := cmd.Start(); err != nil {
		sock.Close()
		return fmt.Errorf("start FUSE daemon: %w", err)
	}
	k.child, k.sock = cmd, sock
	go k.hear(sock)
	if err := sock.Send(encode(fuseMsg{Op: "config", Config: &cfg}), dev); err != nil {
		return nil // its end is heard
	}
	if cfg.TakeOver {
		k.laneless = true
		k.tell(encode(fuseMsg{Op: "restarted"}))
		k.tell(encode(fuseMsg{Op: "lost"})) // the lane, with the daemon before
	}
	return nil
}

// bury waits for a daemon that has closed its socket, and tells how it ended.
func (k *fuseKeeper) bury() error {
	if k.child == nil {
		return errors.New("there is none")
	}
	_ = k.child.Process.Kill() // most times it has ended
	err := k.child.Wait()
	if err == nil {
		err = errors.New("without an error")
	}
	k.sock.Close()
	k.child, k.sock = nil, nil
	return err
}

// end leaves no daemon behind.
func (k *fuseKeeper) end() {
	if k.child != nil {
		_ = k.bury() // how it ends does not matter any more
	}
}
