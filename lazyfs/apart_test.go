package lazyfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// With helperConf.Apart the daemon is a process of its own, below the one that has the server, which kills it when told and starts the next.

const (
	apartEnv = "LAZYFS_TEST_DAEMON"

	apartDaemonFD = 3 // socket to the keeper
)

// parkRemote is the daemon's Remote that stops for ever after an operation has been done and before anybody is told.
type parkRemote struct {
	*remotefs.Client
	sock *fdpass.Socket
	at   chan string // holds the operation at which to stop
	mute atomic.Bool // streamed writes stay where they are
}

func (p *parkRemote) park(op string) {
	select {
	case at := <-p.at:
		if at == op {
			_ = p.sock.Send([]byte("parked")) // fails only if this process is to end anyway
			select {}
		}
		p.at <- at
	default:
	}
}

func (p *parkRemote) Lookup(ctx context.Context, who wire.FileCaller, dir uint64, name string) (wire.FileEntry, error) {
	e, err := p.Client.Lookup(ctx, who, dir, name)
	p.park("lookup")
	return e, err
}

func (p *parkRemote) SetAttr(ctx context.Context, who wire.FileCaller, node uint64, s wire.FileSetAttr) (wire.FileAttr, error) {
	a, err := p.Client.SetAttr(ctx, who, node, s)
	p.park("setattr")
	return a, err
}

func (p *parkRemote) Symlink(ctx context.Context, who wire.FileCaller, dir uint64, name, target string) (wire.FileEntry, error) {
	e, err := p.Client.Symlink(ctx, who, dir, name, target)
	p.park("symlink")
	return e, err
}

func (p *parkRemote) Mkdir(ctx context.Context, who wire.FileCaller, dir uint64, name string, mode, umask uint32) (wire.FileEntry, error) {
	e, err := p.Client.Mkdir(ctx, who, dir, name, mode, umask)
	p.park("mkdir")
	return e, err
}

func (p *parkRemote) Unlink(ctx context.Context, who wire.FileCaller, dir uint64, name string) error {
	err := p.Client.Unlink(ctx, who, dir, name)
	p.park("unlink")
	return err
}

func (p *parkRemote) Rmdir(ctx context.Context, who wire.FileCaller, dir uint64, name string) error {
	err := p.Client.Rmdir(ctx, who, dir, name)
	p.park("rmdir")
	return err
}

func (p *parkRemote) Rename(ctx context.Context, who wire.FileCaller, dir uint64, name string, dir2 uint64, name2 string, flags uint32) error {
	err := p.Client.Rename(ctx, who, dir, name, dir2, name2, flags)
	p.park("rename")
	return err
}

func (p *parkRemote) Link(ctx context.Context, who wire.FileCaller, node, dir uint64, name string) (wire.FileEntry, error) {
	e, err := p.Client.Link(ctx, who, node, dir, name)
	p.park("link")
	return e, err
}

func (p *parkRemote) Open(ctx context.Context, who wire.FileCaller, node uint64, flags uint32) (uint64, error) {
	h, err := p.Client.Open(ctx, who, node, flags)
	p.park("open")
	return h, err
}

func (p *parkRemote) OpenAs(who wire.FileCaller, node, h uint64, flags uint32, dir bool) {
	select {
	case at := <-p.at:
		if at == "lose" { // what is sent is lost: the daemon ends before it is sent again
			return
		}
		p.at <- at
	default:
	}
	p.Client.OpenAs(who, node, h, flags, dir)
	p.park("open")
}

func (p *parkRemote) Create(ctx context.Context, who wire.FileCaller, dir uint64, name string, flags, mode, umask uint32) (uint64, wire.FileEntry, error) {
	h, e, err := p.Client.Create(ctx, who, dir, name, flags, mode, umask)
	p.park("create")
	return h, e, err
}

func (p *parkRemote) Read(ctx context.Context, node, h, off uint64, b []byte) (int, error) {
	n, err := p.Client.Read(ctx, node, h, off, b)
	p.park("read")
	return n, err
}

func (p *parkRemote) Write(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte) (int, error) {
	n, err := p.Client.Write(ctx, who, node, h, off, flags, b)
	p.park("write")
	return n, err
}

func (p *parkRemote) Stream(ctx context.Context, who wire.FileCaller, node, h, off uint64, flags uint32, b []byte, sent func()) error {
	if p.mute.Load() {
		<-ctx.Done()
		return remotefs.ErrLost
	}
	err := p.Client.Stream(ctx, who, node, h, off, flags, b, sent)
	p.park("stream")
	return err
}

func (p *parkRemote) Fsync(ctx context.Context, who wire.FileCaller, node, h uint64, data bool) error {
	err := p.Client.Fsync(ctx, who, node, h, data)
	p.park("fsync")
	return err
}

func (p *parkRemote) SetXattr(ctx context.Context, who wire.FileCaller, node uint64, name string, v []byte, flags uint32, kill bool) error {
	err := p.Client.SetXattr(ctx, who, node, name, v, flags, kill)
	p.park("setxattr")
	return err
}

func (p *parkRemote) ReadDir(ctx context.Context, node, h, off uint64, size uint32, plus bool) ([]wire.FileDirent, bool, error) {
	l, eof, err := p.Client.ReadDir(ctx, node, h, off, size, plus)
	p.park("readdir")
	return l, eof, err
}

func (p *parkRemote) Tree(ctx context.Context, node uint64, here, below int) ([]wire.FileTree, error) {
	l, err := p.Client.Tree(ctx, node, here, below)
	p.park("lookup") // who waits for it looks up or lists
	p.park("readdir")
	return l, err
}

// apartDaemon is the process of one daemon. conf is "STORE TAKEOVER".
func apartDaemon(conf string) error {
	var store string
	var takeOver bool
	if _, err := fmt.Sscan(conf, &store, &takeOver); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	sock, err := fdpass.New(os.NewFile(apartDaemonFD, "keeper"))
	if err != nil {
		return err
	}
	buf := make([]byte, 100)
	_, files, err := sock.Recv(buf)
	if err != nil {
		return err
	}
	conn, err := fileConn(files[0])
	if err != nil {
		return err
	}
	fd, err := fdpass.Number(files[1])
	if err != nil {
		return err
	}
	var legacy *Legacy
	if takeOver {
		if legacy, err = Inherit(store); err != nil {
			return err
		}
	}
	life := uint32(0)
	if legacy != nil {
		life = legacy.Life
	}
	client := remotefs.NewClient(wire.NewConn(conn), remotefs.ClientOptions{Session: [wire.FileSessionSize]byte{7}, Life: life, Log: log})
	p := &parkRemote{Client: client, sock: sock, at: make(chan string, 1)}
	d, err := Start(context.Background(), Options{FuseFD: fd, Remote: p, StoreDir: store, Log: log, TakeOver: legacy, Stream: true, Keep: func(fd int) error {
		n, err := unix.Dup(fd)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(n), "fuse")
		defer f.Close()
		return sock.Send([]byte("keep"), f)
	}})
	if err != nil {
		return err
	}
	if err := sock.Send([]byte("ready")); err != nil {
		return err
	}
	for {
		n, _, err := sock.Recv(buf)
		if err != nil {
			_ = client.Close()
			return d.Close()
		}
		switch op, at, _ := strings.Cut(string(buf[:n]), " "); op {
		case "grant":
			if err := d.Granted(); err != nil {
				return err
			}
			err = sock.Send([]byte("granted"))
		case "hold":
			if err := d.Hold(); err != nil {
				return err
			}
			err = sock.Send([]byte("held"))
		case "park":
			p.at <- at
			err = sock.Send([]byte("armed"))
		case "rooms":
			s, n := d.fs.stream, 0
			s.mu.Lock()
			for _, r := range s.rooms {
				if r.known {
					n++
				}
			}
			s.mu.Unlock()
			err = sock.Send(fmt.Append(nil, "rooms ", n))
		case "mute":
			p.mute.Store(true)
			err = sock.Send([]byte("armed"))
		}
		if err != nil {
			return err
		}
	}
}

// keeper is the daemon's parent, with the server.
type keeper struct {
	server *remotefs.Server
	store  string
	kept   int // /dev/fuse, -1 before the grant
	cmd    *exec.Cmd
	sock   *fdpass.Socket
	said   chan string
}

func (k *keeper) start(dev int) error {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return err
	}
	defer peer.Close()
	a, b, err := socketPair()
	if err != nil {
		return err
	}
	go func() { _ = k.server.Serve(context.Background(), wire.NewConn(a)) }() // ends with the daemon
	conn, err := b.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return err
	}
	_ = b.Close()
	k.cmd = exec.Command("/proc/self/exe")
	k.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %v", apartEnv, k.store, k.kept >= 0))
	k.cmd.Stderr, k.cmd.ExtraFiles, k.cmd.SysProcAttr = os.Stderr, []*os.File{peer}, &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := k.cmd.Start(); err != nil {
		return err
	}
	n, err := unix.FcntlInt(uintptr(dev), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(n), "fuse")
	err = sock.Send([]byte("start"), conn, f)
	_, _ = f.Close(), conn.Close()
	if err != nil {
		return err
	}
	k.sock, k.said = sock, make(chan string, 10)
	go k.listen(sock, k.said)
	return k.await("ready")
}

func (k *keeper) listen(sock *fdpass.Socket, said chan string) {
	defer close(said)
	buf := make([]byte, 100)
	for {
		n, files, err := sock.Recv(buf)
		if err != nil {
			return
		}
		switch s := string(buf[:n]); s {
		case "parked":
			fmt.Println(s)
		case "keep":
			if k.kept, err = fdpass.Number(files[0]); err != nil {
				return
			}
		default:
			said <- s
		}
	}
}

func (k *keeper) await(s string) error {
	if got, ok := <-k.said; !ok || got != s {
		return fmt.Errorf("daemon says %q, not %q", got, s)
	}
	return nil
}

func (k *keeper) ask(s, answer string) error {
	if err := k.sock.Send([]byte(s)); err != nil {
		return err
	}
	return k.await(answer)
}

// kill kills the daemon and waits until all of it is gone.
func (k *keeper) kill() error {
	if err := k.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = k.cmd.Wait() // how it ended is known
	for range k.said {
	}
	return k.sock.Close()
}

// apart is the helper with the daemon as a process of its own.
func apart(server *remotefs.Server, store string) error {
	k := &keeper{server: server, store: store, kept: -1}
	if err := k.start(3); err != nil {
		return err
	}
	_ = unix.Close(3)
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		op, arg, _ := strings.Cut(in.Text(), " ")
		var err error
		switch op {
		case "grant":
			server.Grant()
			err = k.ask("grant", "granted")
			if err == nil && k.kept < 0 {
				err = errors.New("nothing is kept")
			}
			fmt.Println("granted")
		case "hold":
			err = k.ask("hold", "held")
			fmt.Println("held")
		case "kill":
			if err = k.kill(); err == nil {
				err = k.start(k.kept)
			}
			fmt.Println("killed")
		case "park":
			err = k.ask("park "+arg, "armed")
			fmt.Println("armed")
		case "rooms":
			err = k.sock.Send([]byte("rooms"))
			fmt.Println(<-k.said)
		case "mute":
			err = k.ask("mute", "armed")
			fmt.Println("muted")
		case "stats":
			s := server.Stats()
			ents, _ := os.ReadDir(k.store + "/" + KeptDir) // none if it is not there
			names := make([]string, 0, len(ents))
			for _, e := range ents {
				names = append(names, e.Name())
			}
			slices.Sort(names)
			fmt.Println("nodes", s.Nodes, "handles", s.Handles, "kept", strings.Join(names, " "))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	if k.kept >= 0 {
		_ = unix.Close(k.kept)
	}
	if err := k.kill(); err != nil {
		return err
	}
	if err := server.Close(); err != nil {
		return err
	}
	fmt.Println("closed")
	return nil
}
