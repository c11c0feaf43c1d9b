package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// FuseKeeperArg is the hidden subcommand that runs FuseKeeperMain.
const FuseKeeperArg = "fuse-keeper"

// FuseKeeperMain is the daemon's parent. It passes on what agent and daemon say to each other, keeps /dev/fuse from the grant on, and starts
// the next daemon when one dies; the tree waits meanwhile. It survives the agent.
//
// Who dies with whom: a mount must be neither lost with one process nor held by one that can't be killed. The last descriptor of /dev/fuse
// ends a connection, and only that (or its abort) ends the wait of a process for an answer, even of a killed one. So who holds it must never wait for the mount
// itself: not the guardian, whose root it is, but this process, which opens no file after its start.
//
//	daemon dies before the grant    so does the keeper: the mount ends, the migration is given up
//	daemon dies later               the next takes over; before Linux 6.9, where requests can't be sent again, the mount ends
//	keeper dies                     the agent, which has a copy of /dev/fuse, ends the daemon and starts both again
//	agent dies                      keeper and daemon go on; files that come over the network wait if the lane is lost, too
//	mount ends                      daemon and keeper wait for the agent's last words, and end when it says so or is gone
func FuseKeeperMain(log *slog.Logger) error {
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
	k := &fuseKeeper{exe: exe, log: log, agent: agent, kept: -1, heard: make(chan keeperEvent)}
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

	cfg    *fuseConfig // for the next daemon
	kept   int         // /dev/fuse, -1 before the grant
	handed bool        // the grant has been given
	over   bool        // the mount is gone
	child  *exec.Cmd   // nil: there is none
	sock   *fdpass.Socket
	born   time.Time
	pause  time.Duration
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
	for {
		var e keeperEvent
		select {
		case e = <-k.heard:
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
			if !k.handed || k.over {
				return nil
			}
			k.log.Warn("the agent is gone; the tree's files are served on", "err", e.err)
		case e.from == k.agent:
			if done, err := k.fromAgent(e); done || err != nil {
				return err
			}
		case e.from != k.sock: // of a daemon that has been buried
			fdpass.CloseAll(e.files)
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
			k.log.Error("FUSE daemon has died; the next takes over", "err", err, "state", "the tree waits for files meanwhile")
			again = time.After(k.backoff())
		}
	}
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
		if !k.cfg.TakeOver {
			return false, k.start(e.files[0])
		}
		var err error
		k.handed = true
		if k.kept, err = fdpass.Number(e.files[0]); err != nil {
			return false, err
		}
		return false, k.start(nil)
	case e.m.Op == "granted":
		k.handed = true
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
		fd, err := unix.FcntlInt(uintptr(k.kept), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fmt.Errorf("copy /dev/fuse: %w", err)
		}
		dev = os.NewFile(uintptr(fd), "/dev/fuse")
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
