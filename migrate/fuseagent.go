package migrate

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/lazyfs"
)

// fuseDaemon is the agent's side of the daemon, and of its keeper.
type fuseDaemon struct {
	part   func(parts.Spec) (*parts.Process, error)
	cfg    fuseConfig
	log    *slog.Logger
	onLost func() // the lane is lost

	seeded chan struct{} // closed when the daemon has what the source told ahead of the freeze
	frozen chan struct{} // closed when it knows how files stand at the freeze
	msgs   chan fuseMsg  // ready, granted, failed; closed when the daemon is gone
	done   chan struct{}

	mu     sync.Mutex
	proc   *parts.Process // the keeper; nil: another agent has started it
	pidfd  int            // its; names its process group, too, even when it is dead; -1: none
	sock   *fdpass.Socket
	kept   int  // /dev/fuse, for the next keeper; -1 before it is held
	ending bool // Close has begun

	replaced bool // another agent has the keeper now

	asks      map[uint64]chan storeMsg // questions about the store without an answer
	asked     uint64                   // the last one's number; they begin anywhere, as an answer may be to an agent before this one
	followed  uint64                   // daemons that have died
	outliving bool                     // the daemon has been asked to let itself be outlived
}

func newFuseDaemon(part func(parts.Spec) (*parts.Process, error), cfg fuseConfig, onLost func(), log *slog.Logger) *fuseDaemon {
	var first [8]byte
	_, _ = rand.Read(first[:]) // never fails, see crypto/rand
	return &fuseDaemon{
		part: part, cfg: cfg, log: log, onLost: onLost, msgs: make(chan fuseMsg, 8), done: make(chan struct{}), kept: -1,
		pidfd: -1, seeded: make(chan struct{}), frozen: make(chan struct{}), asks: map[uint64]chan storeMsg{}, asked: binary.NativeEndian.Uint64(first[:]),
	}
}

// startFuseDaemon starts the daemon on an open /dev/fuse, which somebody else mounts. It serves once it has a lane.
func startFuseDaemon(part func(parts.Spec) (*parts.Process, error), cfg fuseConfig, fuse *os.File, onLost func(), log *slog.Logger) (*fuseDaemon, error) {
	_, _ = rand.Read(cfg.Session[:]) // never fails, see crypto/rand
	d := newFuseDaemon(part, cfg, onLost, log)
	if err := d.start(fuse); err != nil {
		return nil, fmt.Errorf("start FUSE daemon: %w", err)
	}
	go d.run()
	return d, nil
}

// attachFuseDaemon finds the keeper of a daemon that another agent has started, by the migration's directory. If the daemon has no connection, onLost is called.
func attachFuseDaemon(part func(parts.Spec) (*parts.Process, error), dir string, onLost func(), log *slog.Logger) (*fuseDaemon, error) {
	d := newFuseDaemon(part, fuseConfig{}, onLost, log)
	var pid int
	var err error
	if d.sock, pid, err = fdpass.Reach(dir, fuseSocket); err != nil {
		return nil, fmt.Errorf("find keeper of the FUSE daemon: %w", err)
	}
	if d.pidfd, err = unix.PidfdOpen(pid, 0); err == nil {
		err = d.readConfig() // it lives, so the PID is its
	}
	if err != nil {
		if d.pidfd >= 0 {
			unix.Close(d.pidfd)
		}
		d.sock.Close()
		return nil, fmt.Errorf("find keeper of the FUSE daemon: %w", err)
	}
	go d.run()
	return d, nil
}

// leave goes away from a keeper that stays.
func (d *fuseDaemon) leave() {
	d.mu.Lock()
	d.replaced = true
	s := d.sock
	d.mu.Unlock()
	s.Close()
	for range d.msgs { // a message that nobody wants any more must not stop the reader
	}
	<-d.done
}

// readConfig takes what a keeper says first to another agent.
func (d *fuseDaemon) readConfig() error {
	buf := make([]byte, fdpass.MaxMessage)
	n, files, err := d.sock.Recv(buf)
	if err != nil {
		return err
	}
	fdpass.CloseAll(files)
	var m fuseMsg
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		return fmt.Errorf("first message of keeper: %w", err)
	}
	if m.Op != "config" || m.Config == nil {
		return fmt.Errorf("keeper says %q first", m.Op)
	}
	d.cfg = *m.Config
	return nil
}

// start starts a keeper, which starts the daemon.
func (d *fuseDaemon) start(fuse *os.File) error {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return err
	}
	defer peer.Close()
	proc, err := d.part(parts.Spec{Name: FuseKeeperArg, Dir: d.cfg.StoreDir, Files: []*os.File{peer}})
	if err != nil {
		sock.Close()
		return err
	}
	pidfd, err := proc.PidFD()
	if err != nil {
		sock.Close() // with which it ends
		_ = proc.Wait()
		return err
	}
	d.mu.Lock()
	d.proc, d.pidfd, d.sock = proc, pidfd, sock
	d.mu.Unlock()
	d.mu.Lock()
	cfg := d.cfg
	d.mu.Unlock()
	if err := sock.Send(encode(fuseMsg{Op: "config", Config: &cfg}), fuse); err != nil {
		d.bury()
		return err
	}
	return nil
}

// run listens to one keeper after the other.
func (d *fuseDaemon) run() {
	defer close(d.done)
	defer close(d.msgs)
	for {
		d.read()
		d.mu.Lock()
		again := d.kept >= 0 && !d.ending && !d.replaced
		d.mu.Unlock()
		mountEnded := d.bury()
		if !again || mountEnded {
			return
		}
		d.log.Error("keeper of the FUSE daemon has died; the next takes over", "state", "the tree waits for files meanwhile")
		if err := d.restart(); err != nil {
			d.log.Error("start keeper of the FUSE daemon", "err", err, "state", "the tree's mount is lost with this agent")
			return
		}
	}
}

// restart starts a keeper on what is kept.
func (d *fuseDaemon) restart() error {
	d.mu.Lock()
	d.cfg.TakeOver = true
	d.mu.Unlock()
	f, err := fdpass.File(d.kept, "/dev/fuse")
	if err != nil {
		return err
	}
	defer f.Close()
	return d.start(f)
}

// read takes what one keeper says until its end.
func (d *fuseDaemon) read() {
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := d.sock.Recv(buf)
		if err != nil {
			return
		}
		var m fuseMsg
		if err := json.Unmarshal(buf[:n], &m); err != nil {
			fdpass.CloseAll(files)
			d.log.Error("message of FUSE daemon", "err", err)
			continue
		}
		switch {
		case m.Op == "keep" && d.kept >= 0:
		case m.Op == "keep" && len(files) == 1:
			fd, err := fdpass.Number(files[0])
			if err != nil {
				d.log.Error("keep /dev/fuse", "err", err)
				continue
			}
			d.mu.Lock()
			d.kept = fd
			d.mu.Unlock()
			continue
		case m.Op == "lost":
			d.onLost()
		case m.Op == "seeded": // the first daemon's alone, once each
			close(d.seeded)
		case m.Op == "frozen":
			close(d.frozen)
		case m.Op == "replaced":
			d.mu.Lock()
			d.replaced = true
			d.mu.Unlock()
		case m.Op == "outlive":
			if d.outlived() {
				d.msgs <- m
			}
		case m.Op == "restarted":
			d.log.Warn("the FUSE daemon had died; another has taken over")
			d.storeLost()
			if d.outlived() { // it died over the answer: that there is another one says the same
				d.msgs <- fuseMsg{Op: "outlive"}
			}
		case m.Op == "store" && m.Store != nil:
			d.storeAnswer(m.Store)
		default:
			select {
			case d.msgs <- m:
			default: // nobody waits for any: a lane must be asked for all the same
				d.log.Error("FUSE daemon", "says", m.Op, "err", m.Error)
			}
		}
		fdpass.CloseAll(files)
	}
}

// bury ends keeper and daemon, if they have not ended, and says whether they did because all is over. A keeper that has another agent stays.
func (d *fuseDaemon) bury() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer func() {
		d.sock.Close()
		if d.pidfd >= 0 {
			unix.Close(d.pidfd)
			d.pidfd = -1
		}
	}()
	if d.replaced {
		return true
	}
	if d.kept >= 0 && !d.ending { // its end was heard; the daemon, which may live, must not when the next takes over
		d.kill()
	}
	late := time.AfterFunc(endTime, d.kill)
	over := false
	if d.proc != nil {
		over = d.proc.Wait() == nil
	} else {
		awaitEnd(d.pidfd)
	}
	late.Stop()
	if !over {
		d.killGroup()
	}
	return over
}

// kill kills the keeper.
func (d *fuseDaemon) kill() {
	if d.proc != nil {
		_ = d.proc.Kill() // it has ended, else
		return
	}
	_ = unix.PidfdSendSignal(d.pidfd, unix.SIGKILL, nil, 0)
}

// killGroup kills the daemon of a keeper that is dead.
func (d *fuseDaemon) killGroup() {
	const wholeGroup = 1 << 2 // PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h, since v6.9
	if d.pidfd < 0 {
		return
	}
	if err := unix.PidfdSendSignal(d.pidfd, unix.SIGKILL, nil, wholeGroup); err != nil && !errors.Is(err, unix.ESRCH) {
		d.log.Debug("end FUSE daemon", "err", err) // it ends with the mount
	}
}

// awaitEnd waits for the end of a process that is no child.
func awaitEnd(pidfd int) {
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// await waits for one message of the daemon.
func (d *fuseDaemon) await(ctx context.Context, op string) error {
	select {
	case m, ok := <-d.msgs:
		switch {
		case !ok:
			return errors.New("FUSE daemon has ended")
		case m.Op == "failed":
			return errors.New(m.Error)
		case m.Op != op:
			return fmt.Errorf("FUSE daemon says %q instead of %q", m.Op, op)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// awaitClosed waits for one of the daemon's two steps to the freeze.
func (d *fuseDaemon) awaitClosed(ctx context.Context, step <-chan struct{}) error {
	select {
	case <-step:
		return nil
	case <-d.done:
		return errors.New("FUSE daemon has ended")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// giveLane passes a connection; it is closed here. A clear one's peer has proven itself.
func (d *fuseDaemon) giveLane(f *os.File, clear bool) error {
	defer f.Close()
	return d.send(fuseMsg{Op: "lane", Clear: clear}, f)
}

func (d *fuseDaemon) send(m fuseMsg, files ...*os.File) error {
	d.mu.Lock()
	s := d.sock
	d.mu.Unlock()
	return s.Send(encode(m), files...)
}

// outlive makes daemon and keeper independent of this process, and of each other.
func (d *fuseDaemon) outlive(ctx context.Context) error {
	d.mu.Lock()
	d.outliving = true
	d.mu.Unlock()
	if err := d.send(fuseMsg{Op: "outlive"}); err != nil {
		return fmt.Errorf("let FUSE daemon outlive its agent: %w", err)
	}
	if err := d.await(ctx, "outlive"); err != nil {
		return fmt.Errorf("let FUSE daemon outlive its agent: %w", err)
	}
	return nil
}

// outlived says whether the question of outlive is still open, and closes it.
func (d *fuseDaemon) outlived() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.outliving
	d.outliving = false
	return was
}

// granted ends the time in which changes stay local. It may be said again by another agent.
func (d *fuseDaemon) granted(ctx context.Context) error {
	d.mu.Lock()
	d.cfg.Granted, d.cfg.Granting = true, true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.cfg.Granting = false
		d.mu.Unlock()
	}()
	if err := d.send(fuseMsg{Op: "granted"}); err != nil {
		return fmt.Errorf("tell FUSE daemon of the grant: %w", err)
	}
	if err := d.await(ctx, "granted"); err != nil {
		return fmt.Errorf("tell FUSE daemon of the grant: %w", err)
	}
	return nil
}

// Close ends keeper and daemon, and with the last /dev/fuse the mount.
func (d *fuseDaemon) Close() {
	d.mu.Lock()
	d.ending = true
	s := d.sock
	d.mu.Unlock()
	_ = s.Send(encode(fuseMsg{Op: "end"})) // fails if it has ended
	for range d.msgs {                     // a message that nobody wants any more must not stop the reader
	}
	<-d.done
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept >= 0 {
		unix.Close(d.kept)
		d.kept = -1
	}
	for _, name := range []string{lazyfs.KeptDir, fuseSocket} {
		if err := os.RemoveAll(filepath.Join(d.cfg.StoreDir, name)); err != nil {
			d.log.Error("remove what FUSE daemons have left", "err", err)
		}
	}
}
