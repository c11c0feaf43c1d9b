package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"

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
	StoreDir string            `json:"store_dir"`
	Local    map[string][]byte `json:"local,omitempty"`
}

// fuseMsg is what agent and daemon say to each other.
type fuseMsg struct {
	Op     string      `json:"op"` // config (+ /dev/fuse), lane (+ connection), granted; up: ready, seeded, frozen, granted, lost, failed
	Config *fuseConfig `json:"config,omitempty"`
	Store  *storeMsg   `json:"store,omitempty"` // op store: both ways
	Error  string      `json:"error,omitempty"`
}

// fuseDaemon is the agent's side of the daemon.
type fuseDaemon struct {
	cmd    *exec.Cmd
	sock   *fdpass.Socket
	log    *slog.Logger
	onLost func() // the lane is lost

	seeded chan struct{} // closed when the daemon has what the source told ahead of the freeze
	frozen chan struct{} // closed when it knows how files stand at the freeze
	msgs   chan fuseMsg  // ready, granted, failed; closed when the daemon is gone
	done   chan struct{}

	mu    sync.Mutex
	asks  map[uint64]chan storeMsg // questions about the store without an answer
	asked uint64
}

// startFuseDaemon starts the daemon on an open /dev/fuse, which somebody else mounts. It serves once it has a lane.
func startFuseDaemon(exe string, cfg fuseConfig, fuse *os.File, onLost func(), log *slog.Logger) (*fuseDaemon, error) {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("start FUSE daemon: %w", err)
	}
	defer peer.Close()
	cmd := exec.Command(exe, FuseDaemonArg)
	cmd.ExtraFiles = []*os.File{peer}
	cmd.Stderr = os.Stderr
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		sock.Close()
		return nil, fmt.Errorf("start FUSE daemon: %w", err)
	}
	d := &fuseDaemon{cmd: cmd, sock: sock, log: log, onLost: onLost, msgs: make(chan fuseMsg, 8), done: make(chan struct{}),
		seeded: make(chan struct{}), frozen: make(chan struct{}), asks: map[uint64]chan storeMsg{}}
	go d.read()
	if err := d.sock.Send(encode(fuseMsg{Op: "config", Config: &cfg}), fuse); err != nil {
		d.Close()
		return nil, fmt.Errorf("start FUSE daemon: %w", err)
	}
	return d, nil
}

func (d *fuseDaemon) read() {
	defer close(d.done)
	defer close(d.msgs)
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := d.sock.Recv(buf)
		if err != nil {
			break
		}
		fdpass.CloseAll(files)
		var m fuseMsg
		if err := json.Unmarshal(buf[:n], &m); err != nil {
			d.log.Error("message of FUSE daemon", "err", err)
			continue
		}
		switch m.Op {
		case "lost":
			d.onLost()
		case "seeded":
			close(d.seeded)
		case "frozen":
			close(d.frozen)
		case "store":
			if m.Store != nil {
				d.storeAnswer(m.Store)
			}
		default:
			d.msgs <- m
		}
	}
	err := d.cmd.Wait()
	d.log.Debug("FUSE daemon ended", "err", err)
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
	return d.sock.Send(encode(fuseMsg{Op: "lane"}), f)
}

// granted ends the time in which changes stay local.
func (d *fuseDaemon) granted(ctx context.Context) error {
	if err := d.sock.Send(encode(fuseMsg{Op: "granted"})); err != nil {
		return fmt.Errorf("tell FUSE daemon of the grant: %w", err)
	}
	if err := d.await(ctx, "granted"); err != nil {
		return fmt.Errorf("tell FUSE daemon of the grant: %w", err)
	}
	return nil
}

// Close ends the daemon: it sees its socket closed; if it is stuck it is killed.
func (d *fuseDaemon) Close() {
	_ = d.cmd.Process.Kill() // nothing in it needs to be finished: it has no state of its own here
	d.sock.Close()
	for range d.msgs { // a message that nobody wants any more must not stop the reader
	}
	<-d.done
}

// FuseDaemonMain is the daemon: it serves one mount until its socket closes, or, if the tree runs by then, until the mount is gone.
func FuseDaemonMain(log *slog.Logger) error {
	unix.CloseOnExec(3)
	sock, err := fdpass.New(os.NewFile(3, "control"))
	if err != nil {
		return err
	}
	defer sock.Close()
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}) // as many as allowed; more is better, less works
	p := &fuseProcess{sock: sock, log: log}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	defer p.close()
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := sock.Recv(buf)
		if err != nil && p.handed.Load() {
			log.Warn("the agent is gone; the tree's files are served on", "err", err)
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
	wg        sync.WaitGroup
}

func (p *fuseProcess) handle(m fuseMsg, files []*os.File) (err error) {
	switch {
	case m.Op == "config" && m.Config != nil && len(files) == 1:
		p.cfg, p.fuse = *m.Config, files[0]
		p.keys, err = keys.Load(p.cfg.TLSDir)
		return err
	case m.Op == "lane" && len(files) == 1:
		return p.lane(files[0])
	case m.Op == "granted" && p.daemon != nil:
		p.handed.Store(true)
		p.wg.Go(p.granted)
		return nil
	case m.Op == "store" && m.Store != nil && p.daemon != nil:
		s, err := p.startStore()
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
		m = fuseMsg{Op: "failed", Error: err.Error()}
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
		if p.client != nil && !p.connected.Load() { // the agent believes that this was the lane it asked for
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
	p.client = remotefs.NewClient(c, remotefs.ClientOptions{Log: p.log, Lost: func(error) {
		p.connected.Store(false)
		p.lost()
	}})
	// A number of its own: the runtime may have put the one that came over the socket into its poller, and what is polled
	// before the mount is never woken (fs/fuse/dev.c, fuse_dev_poll).
	fd, err := unix.FcntlInt(p.fuse.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("copy /dev/fuse: %w", err)
	}
	p.daemon, err = lazyfs.Start(context.Background(), lazyfs.Options{
		FuseFD: fd, Remote: p.client, Seeds: p.client, StoreDir: p.cfg.StoreDir, LocalFiles: p.cfg.Local, Log: p.log,
	})
	if err != nil {
		return err
	}
	_ = p.fuse.Close() // the daemon has its own; this one would keep the connection alive when that is closed
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
