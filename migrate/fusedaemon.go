package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
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
	Since  time.Time  `json:"since"` // when the migration began
}

type fuseConfig struct {
	laneConfig
	StoreDir string                     `json:"store_dir"`
	Local    map[string][]byte          `json:"local,omitempty"`
	Session  [wire.FileSessionSize]byte `json:"session"`             // of all daemons, one after the other
	Stream   bool                       `json:"stream,omitempty"`    // writes may be streamed
	TakeOver bool                       `json:"take_over,omitempty"` // another daemon is dead
	Granted  bool                       `json:"granted,omitempty"`   // it was told
	Granting bool                       `json:"granting,omitempty"`  // and had not answered
}

// fuseMsg is what agent and daemon say to each other, through the keeper, which itself understands end and unmounted, and says restarted.
type fuseMsg struct {
	Op     string      `json:"op"` // config (+ /dev/fuse), lane (+ connection), outlive, granted, end; up: ready, seeded, frozen, keep (+ /dev/fuse), outlive, granted, lost, restarted, replaced, failed
	Config *fuseConfig `json:"config,omitempty"`
	Clear  bool        `json:"clear,omitempty"` // op lane: no TLS, who is there has been proven
	Store  *storeMsg   `json:"store,omitempty"` // op store: both ways
	Error  string      `json:"error,omitempty"`
}

// FuseDaemonMain is the daemon: it serves one mount until that is gone; before the grant its keeper's end is its end, too.
func FuseDaemonMain(log *slog.Logger) error {
	unix.CloseOnExec(3)
	sock, err := fdpass.New(os.NewFile(3, "control"))
	if err != nil {
		return err
	}
	defer sock.Close()
	if err := confine.Syscalls(fuseCalls()...); err != nil {
		return err
	}
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
		if err != nil && p.outlives.Load() && p.daemon != nil {
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
	early  []storeMsg   // what was asked before there was a connection
	ctx    context.Context
	cancel context.CancelFunc

	connected atomic.Bool // the client has a connection, as far as is known
	outlives  atomic.Bool // somebody needs this process, whoever dies
	handed    atomic.Bool // the grant has been given
	over      chan error  // holds why serving has failed
	wg        sync.WaitGroup
}

func (p *fuseProcess) handle(m fuseMsg, files []*os.File) (err error) {
	switch {
	case m.Op == "config" && m.Config != nil && len(files) == 1:
		p.cfg, p.fuse = *m.Config, files[0]
		p.outlives.Store(p.cfg.TakeOver)
		p.handed.Store(p.cfg.Granted)
		if p.keys, err = keys.Load(p.cfg.TLSDir); err == nil {
			p.keys = p.keys.Since(p.cfg.Since)
		}
		return err
	case m.Op == "lane" && len(files) == 1:
		return p.lane(files[0], m.Clear)
	case m.Op == "outlive" && p.daemon != nil:
		p.outlives.Store(true)
		p.wg.Go(p.outlive)
		return nil
	case m.Op == "granted" && p.daemon != nil:
		p.outlives.Store(true)
		p.handed.Store(true)
		p.wg.Go(p.granted)
		return nil
	case m.Op == "granted" && p.cfg.TakeOver: // there is no connection yet
		p.handed.Store(true)
		p.cfg.Granting = true
		return nil
	case m.Op == "store" && m.Store != nil && m.Store.Do == "differs" && p.daemon != nil:
		p.wg.Go(func() { p.answerDiffers(*m.Store) })
		return nil
	case m.Op == "store" && m.Store != nil && p.daemon != nil:
		return p.askedStore(*m.Store)
	case m.Op == "store" && m.Store != nil && p.cfg.TakeOver:
		return p.askedEarly(*m.Store)
	}
	fdpass.CloseAll(files)
	return fmt.Errorf("unexpected message %q with %d descriptors", m.Op, len(files))
}

// outlive writes down what a successor needs.
func (p *fuseProcess) outlive() {
	m := fuseMsg{Op: "outlive"}
	switch err := p.daemon.Hold(); {
	case errors.Is(err, lazyfs.ErrNoSuccessor):
		p.log.Warn("the tree's mount will not outlive this daemon", "err", err)
	case err != nil: // nothing has been given away yet
		m = fuseMsg{Op: "failed", Error: err.Error()}
	}
	if err := p.sock.Send(encode(m)); err != nil {
		p.log.Warn("answer agent", "to", "outlive", "err", err) // it is gone
	}
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

func (p *fuseProcess) lane(f *os.File, clear bool) error {
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil && p.needsLane() { // out of descriptors: it is asked for again when there may be some
		p.log.Error("take files lane", "err", err)
		p.wg.Go(func() {
			select {
			case <-time.After(passAgain):
				p.lost()
			case <-p.ctx.Done():
			}
		})
		return nil
	}
	if err != nil {
		return fmt.Errorf("take connection: %w", err)
	}
	if tc, ok := nc.(*net.TCPConn); ok { // FileConn has set the keepalive to Go's own
		if err := wire.NoticeSilence(tc); err != nil {
			p.log.Warn("files lane", "err", err)
		}
	}
	if clear {
		return p.up(wire.NewClear(nc))
	}
	c, _, err := accept(nc, p.keys.Server(p.cfg.Allow...), wire.Hello{Lane: wire.LaneFiles, ID: p.cfg.ID, Token: p.cfg.Token})
	if err != nil {
		nc.Close()
		p.log.Warn("files lane refused", "err", err)
		if p.needsLane() { // the agent believes that this was the one it asked for
			p.lost()
		}
		return nil // somebody's attempt; the migration goes on
	}
	return p.up(c)
}

// needsLane says that there has been a connection, of this daemon or the one before, and there is none.
func (p *fuseProcess) needsLane() bool {
	return (p.client != nil || p.cfg.TakeOver) && !p.connected.Load()
}

// up uses a connection of the right peer.
func (p *fuseProcess) up(c *wire.Conn) error {
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
	o := lazyfs.Options{StoreDir: p.cfg.StoreDir, LocalFiles: p.cfg.Local, Log: p.log, Keep: p.keep, Stream: p.cfg.Stream}
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
	if p.cfg.Granting {
		p.wg.Go(p.granted)
	}
	if p.cfg.TakeOver {
		for _, q := range p.early {
			if err := p.askedStore(q); err != nil {
				return err
			}
		}
		p.early = nil
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
	f, err := fdpass.File(fd, "/dev/fuse")
	if err != nil {
		return err
	}
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
