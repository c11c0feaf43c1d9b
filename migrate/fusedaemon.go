package migrate

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/lazyfs"
	"github.com/lazymig/lazymig/lazyfs/store"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// FuseDaemonArg is the hidden subcommand that runs FuseDaemonMain.
const FuseDaemonArg = "fuse-daemon"

// laneConfig is what a process that serves lanes must know to accept them.
type laneConfig struct {
	ID     wire.ID    `json:"id"`
	Token  wire.Token `json:"token"`
	TLSDir string     `json:"tls_dir"`
	Allow  []string   `json:"allow,omitempty"`
}

type fuseConfig struct {
	laneConfig
	StoreDir string                     `json:"store_dir"`
	Local    map[string][]byte          `json:"local,omitempty"`
	Session  [wire.FileSessionSize]byte `json:"session"`             // of all daemons, one after the other
	TakeOver bool                       `json:"take_over,omitempty"` // another daemon is dead
}

// fuseMsg is what agent and daemon say to each other, through the keeper, which itself understands end and unmounted, and says restarted.
type fuseMsg struct {
	Op     string      `json:"op"` // config (+ /dev/fuse), lane (+ connection), granted, end; up: ready, seeded, frozen, keep (+ /dev/fuse), granted, lost, restarted, failed
	Config *fuseConfig `json:"config,omitempty"`
	Store  *storeMsg   `json:"store,omitempty"` // op store: both ways
	Error  string      `json:"error,omitempty"`
}

// fuseDaemon is the agent's side of the daemon, and of its keeper.
type fuseDaemon struct {
	exe    string
	cfg    fuseConfig
	log    *slog.Logger
	onLost func() // the lane is lost

	seeded chan struct{} // closed when the daemon has what the source told ahead of the freeze
	frozen chan struct{} // closed when it knows how files stand at the freeze
	msgs   chan fuseMsg  // ready, granted, failed; closed when the daemon is gone
	done   chan struct{}

	mu     sync.Mutex
	cmd    *exec.Cmd // the keeper
	pidfd  int       // its; names its process group, too, even when it is dead. -1: the kernel has none
	sock   *fdpass.Socket
	kept   int // /dev/fuse, for the next keeper; -1 before the grant
	ending bool

	asks  map[uint64]chan storeMsg // questions about the store without an answer
	asked uint64
}

// startFuseDaemon starts the daemon on an open /dev/fuse, which somebody else mounts. It serves once it has a lane.
func startFuseDaemon(exe string, cfg fuseConfig, fuse *os.File, onLost func(), log *slog.Logger) (*fuseDaemon, error) {
	_, _ = rand.Read(cfg.Session[:]) // never fails, see crypto/rand
	d := &fuseDaemon{exe: exe, cfg: cfg, log: log, onLost: onLost, msgs: make(chan fuseMsg, 8), done: make(chan struct{}), kept: -1,
		seeded: make(chan struct{}), frozen: make(chan struct{}), asks: map[uint64]chan storeMsg{}}
	if err := d.start(fuse); err != nil {
		return nil, fmt.Errorf("start FUSE daemon: %w", err)
	}
	go d.run()
	return d, nil
}

// start starts a keeper, which starts the daemon.
func (d *fuseDaemon) start(fuse *os.File) error {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return err
	}
	defer peer.Close()
	pidfd := -1
	cmd := exec.Command(d.exe, FuseKeeperArg)
	cmd.ExtraFiles, cmd.Stderr, cmd.Dir = []*os.File{peer}, os.Stderr, "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, PidFD: &pidfd} // the group is keeper and daemon
	if err := cmd.Start(); err != nil {
		sock.Close()
		return err
	}
	d.mu.Lock()
	d.cmd, d.pidfd, d.sock = cmd, pidfd, sock
	d.mu.Unlock()
	if err := sock.Send(encode(fuseMsg{Op: "config", Config: &d.cfg}), fuse); err != nil {
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
		again := d.kept >= 0 && !d.ending
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
	d.cfg.TakeOver = true
	fd, err := unix.FcntlInt(uintptr(d.kept), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("copy /dev/fuse: %w", err)
	}
	f := os.NewFile(uintptr(fd), "/dev/fuse")
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
		case m.Op == "keep" && len(files) == 1 && d.kept < 0:
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
		case m.Op == "restarted":
			d.log.Warn("the FUSE daemon had died; another has taken over")
			d.storeLost()
		case m.Op == "store" && m.Store != nil:
			d.storeAnswer(m.Store)
		default:
			d.msgs <- m
		}
		fdpass.CloseAll(files)
	}
}

// bury ends keeper and daemon, if they have not ended, and says whether they did because the mount had.
func (d *fuseDaemon) bury() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	const wholeGroup = 1 << 2 // PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h, since v6.9
	late := time.AfterFunc(endTime, func() { _ = d.cmd.Process.Kill() })
	if d.kept >= 0 && !d.ending || d.pidfd < 0 { // its end was heard; the daemon, which may live, must not when the next takes over
		_ = d.cmd.Process.Kill()
	}
	err := d.cmd.Wait()
	late.Stop()
	if err != nil && d.pidfd >= 0 {
		if e := unix.PidfdSendSignal(d.pidfd, unix.SIGKILL, nil, wholeGroup); e != nil && !errors.Is(e, unix.ESRCH) {
			d.log.Debug("end FUSE daemon", "err", e) // it ends with the mount
		}
	}
	d.log.Debug("keeper of the FUSE daemon ended", "err", err)
	if d.pidfd >= 0 {
		unix.Close(d.pidfd)
		d.pidfd = -1
	}
	d.sock.Close()
	return err == nil
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

// giveLane passes a connection; it is closed here.
func (d *fuseDaemon) giveLane(f *os.File) error {
	defer f.Close()
	return d.send(fuseMsg{Op: "lane"}, f)
}

func (d *fuseDaemon) send(m fuseMsg, files ...*os.File) error {
	d.mu.Lock()
	s := d.sock
	d.mu.Unlock()
	return s.Send(encode(m), files...)
}

// granted ends the time in which changes stay local.
func (d *fuseDaemon) granted(ctx context.Context) error {
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
	if err := os.RemoveAll(filepath.Join(d.cfg.StoreDir, lazyfs.KeptDir)); err != nil {
		d.log.Error("remove what FUSE daemons have kept", "err", err)
	}
}

// FuseDaemonMain is the daemon: it serves one mount until that is gone; before the grant its keeper's end is its end, too.
func FuseDaemonMain(log *slog.Logger) error {
	unix.CloseOnExec(3)
	sock, err := fdpass.New(os.NewFile(3, "control"))
	if err != nil {
		return err
	}
	defer sock.Close()
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}) // as many as allowed; more is better, less works
	p := &fuseProcess{sock: sock, log: log, over: make(chan error, 1)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	defer p.close()
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := sock.Recv(buf)
		select {
		case err := <-p.over:
			fdpass.CloseAll(files)
			return err
		default:
		}
		if err != nil && p.handed.Load() && p.daemon != nil {
			log.Warn("the keeper is gone; the tree's files are served on", "err", err)
			return p.daemon.Wait()
		}
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		var m fuseMsg
		if err := json.Unmarshal(buf[:n], &m); err != nil {
			fdpass.CloseAll(files)
			return fmt.Errorf("message of agent: %w", err)
		}
		if err := p.handle(m, files); err != nil {
			if p.cfg.TakeOver { // the keeper tries again
				return err
			}
			log.Error("FUSE daemon", "op", m.Op, "err", err)
			if err := sock.Send(encode(fuseMsg{Op: "failed", Error: err.Error()})); err != nil {
				return err
			}
		}
	}
}

// fuseProcess is the daemon's state. One goroutine drives it; others only send.
type fuseProcess struct {
	sock   *fdpass.Socket
	log    *slog.Logger
	cfg    fuseConfig
	keys   *keys.Keys
	fuse   *os.File
	client *remotefs.Client
	daemon *lazyfs.Daemon
	store  *store.Store // nil until the agent asks for it
	ctx    context.Context
	cancel context.CancelFunc

	connected atomic.Bool // the client has a connection, as far as is known
	handed    atomic.Bool // the grant has been given: the tree needs this process, whoever dies
	over      chan error  // holds why serving has failed
	wg        sync.WaitGroup
}

func (p *fuseProcess) handle(m fuseMsg, files []*os.File) (err error) {
	switch {
	case m.Op == "config" && m.Config != nil && len(files) == 1:
		p.cfg, p.fuse = *m.Config, files[0]
		p.handed.Store(p.cfg.TakeOver)
		p.keys, err = keys.Load(p.cfg.TLSDir)
		return err
	case m.Op == "lane" && len(files) == 1:
		return p.lane(files[0])
	case m.Op == "granted" && p.daemon != nil:
		p.handed.Store(true)
		p.wg.Go(p.granted)
		return nil
	case m.Op == "store" && m.Store != nil && p.daemon != nil:
		s, err := p.startStore(m.Store.Want)
		if err != nil {
			return p.sock.Send(encode(fuseMsg{Op: "store", Store: &storeMsg{Number: m.Store.Number, Error: err.Error()}}))
		}
		p.wg.Go(func() { p.answerStore(s, *m.Store) })
		return nil
	}
	fdpass.CloseAll(files)
	return fmt.Errorf("unexpected message %q with %d descriptors", m.Op, len(files))
}

// granted waits for operations at work, which may wait for a lane that is to come.
func (p *fuseProcess) granted() {
	m := fuseMsg{Op: "granted"}
	if err := p.daemon.Granted(); err != nil {
		p.log.Warn("the tree's mount will not outlive this daemon", "err", err)
	}
	if err := p.sock.Send(encode(m)); err != nil {
		p.log.Warn("tell agent of the grant", "err", err) // it is gone
	}
}

func (p *fuseProcess) lane(f *os.File) error {
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("take connection: %w", err)
	}
	if tc, ok := nc.(*net.TCPConn); ok { // FileConn has set the keepalive to Go's own
		if err := wire.NoticeSilence(tc); err != nil {
			p.log.Warn("files lane", "err", err)
		}
	}
	c, _, err := accept(nc, p.keys.Server(p.cfg.Allow...), wire.Hello{Lane: wire.LaneFiles, ID: p.cfg.ID, Token: p.cfg.Token})
	if err != nil {
		nc.Close()
		p.log.Warn("files lane refused", "err", err)
		if (p.client != nil || p.cfg.TakeOver) && !p.connected.Load() { // the agent believes that this was the lane it asked for
			p.lost()
		}
		return nil // somebody's attempt; the migration goes on
	}
	p.connected.Store(true)
	if p.client != nil {
		if err := p.client.Attach(c); err != nil {
			return fmt.Errorf("take files lane: %w", err)
		}
		p.log.Info("files lane is back")
		return nil
	}
	return p.serve(c)
}

// serve begins to serve the mount with the first connection.
func (p *fuseProcess) serve(c *wire.Conn) error {
	o := lazyfs.Options{StoreDir: p.cfg.StoreDir, LocalFiles: p.cfg.Local, Log: p.log, Keep: p.keep}
	life := uint32(0)
	if p.cfg.TakeOver {
		l, err := lazyfs.Inherit(p.cfg.StoreDir)
		if err != nil {
			return err
		}
		o.TakeOver, life = l, l.Life
	}
	p.client = remotefs.NewClient(c, remotefs.ClientOptions{Log: p.log, Session: p.cfg.Session, Life: life, Lost: func(error) {
		p.connected.Store(false)
		p.lost()
	}})
	o.Remote = p.client
	if !p.cfg.TakeOver { // after the grant there is nothing to be told ahead
		o.Seeds = p.client
	}
	// A number of its own: the runtime may have put the one that came over the socket into its poller, and what is polled
	// before the mount is never woken (fs/fuse/dev.c, fuse_dev_poll). And this file would keep the connection alive when the daemon has closed its own.
	var err error
	if o.FuseFD, err = fdpass.Number(p.fuse); err != nil {
		return err
	}
	if p.daemon, err = lazyfs.Start(context.Background(), o); err != nil {
		return err
	}
	p.wg.Go(p.watch)
	if p.cfg.TakeOver {
		return nil
	}
	p.wg.Go(p.tellSteps)
	return p.sock.Send(encode(fuseMsg{Op: "ready"}))
}

// tellSteps tells the agent how far the daemon is with what the source tells ahead.
func (p *fuseProcess) tellSteps() {
	for _, step := range []struct {
		done <-chan struct{}
		op   string
	}{{p.daemon.Seeded(), "seeded"}, {p.daemon.Frozen(), "frozen"}} {
		select {
		case <-step.done:
		case <-p.daemon.Done():
			return
		}
		if err := p.sock.Send(encode(fuseMsg{Op: step.op})); err != nil {
			p.log.Warn("tell agent", "op", step.op, "err", err) // it is gone
		}
	}
}

// watch ends this process where serving has failed. When the mount is gone there may still be questions about the store.
func (p *fuseProcess) watch() {
	if err := p.daemon.Wait(); err != nil {
		p.over <- err
		p.sock.Shutdown()
		return
	}
	if err := p.sock.Send(encode(fuseMsg{Op: "unmounted"})); err != nil {
		p.log.Debug("tell keeper that the mount is gone", "err", err) // it is gone, too
	}
}

// keep gives the mounted /dev/fuse to the keeper, and through it to the agent.
func (p *fuseProcess) keep(fd int) error {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("copy /dev/fuse: %w", err)
	}
	f := os.NewFile(uintptr(fd), "/dev/fuse")
	defer f.Close()
	return p.sock.Send(encode(fuseMsg{Op: "keep"}), f)
}

// lost asks the agent for another lane.
func (p *fuseProcess) lost() {
	if err := p.sock.Send(encode(fuseMsg{Op: "lost"})); err != nil { // the agent is gone: operations wait
		p.log.Warn("tell agent that the files lane is lost", "err", err)
	}
}

func (p *fuseProcess) close() {
	p.cancel()
	if p.client != nil { // first: the daemon waits for calls that wait for a connection
		p.client.Close()
	}
	if p.daemon != nil {
		_ = p.daemon.Close()
	}
	if p.store != nil {
		_ = p.store.Close()
	}
	p.wg.Wait()
}
