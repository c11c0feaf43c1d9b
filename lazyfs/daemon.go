package lazyfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// MountOptions is the data that mount(2) needs for a descriptor of Start, of the process that mounts.
// Flags: MS_NODEV must not be set if the tree uses device nodes, MS_NOSUID not if it runs set-user-ID programs.
func MountOptions(fd int) string {
	return fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, wire.MaxFileIO)
}

// Options of a Daemon. Only FuseFD and Remote are needed.
type Options struct {
	FuseFD     int               // /dev/fuse, taken over; made non-blocking
	Remote     Remote            // the source
	StoreDir   string            // for contents of local files; must support O_TMPFILE. Empty: memory
	Seeds      Seeder            // what it tells is asked for ahead, see seeds.go. Nil: nothing is
	LocalFiles map[string][]byte // path → contents: files that are the target's own until Granted

	// Keep gets a descriptor of the mounted /dev/fuse from Hold, so that the mount outlives this daemon: copy it. StoreDir
	// must be the successor's, too. Nil: nobody keeps it.
	Keep func(fd int) error
	// Stream lets writes be streamed (stream.go), where the mount outlives its daemon. A successor does what the one before did.
	Stream bool
	// TakeOver is what a daemon has left whose Keep got FuseFD; Remote is then that Life of the client that it had.
	TakeOver *Legacy

	Log *slog.Logger // nil: silent
}

// Daemon serves one mount.
type Daemon struct {
	o      Options
	log    *slog.Logger
	dev    *device
	fs     *fsys
	ps     *fuse.ProtocolServer
	cancel context.CancelFunc
	done   chan struct{} // serving has ended
	reqs   sync.WaitGroup
	flush  chan struct{} // the goroutine that forgets has ended
	buf    []byte        // the reader's

	holdMu sync.Mutex // one request before the grant at a time; before all others

	begun chan struct{} // INIT has been answered
	init  []byte        // that request; once begun is closed
	busy  atomic.Int32

	mu  sync.Mutex
	err error
}

// Start serves the descriptor from the time on at which somebody mounts it. ctx ends it like Close.
func Start(ctx context.Context, o Options) (*Daemon, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Remote == nil {
		return nil, errors.New("lazyfs: no remote")
	}
	if o.StoreDir == "" && o.Keep != nil {
		return nil, errors.New("lazyfs: a mount that outlives its daemon needs a directory")
	}
	if err := unix.SetNonblock(o.FuseFD, true); err != nil {
		return nil, fmt.Errorf("set /dev/fuse non-blocking: %w", err)
	}
	unix.CloseOnExec(o.FuseFD)
	ctx, cancel := context.WithCancel(ctx)
	d := &Daemon{o: o, log: o.Log, cancel: cancel, done: make(chan struct{}), flush: make(chan struct{}), begun: make(chan struct{})}
	d.dev = &device{fd: o.FuseFD, stop: ctx.Done()}
	d.fs = newFsys(ctx, o, d.dev)
	var err error
	if o.TakeOver != nil {
		d.init, err = d.fs.ov.load(o.TakeOver)
	} else {
		err = d.fs.ov.addLocalFiles(o.LocalFiles)
	}
	if err != nil {
		cancel()
		d.fs.close()
		return nil, err
	}
	d.ps = fuse.NewProtocolServer(d.fs, &fuse.MountOptions{
		MaxWrite: wire.MaxFileIO, MaxReadAhead: wire.MaxFileIO, MaxBackground: 128,
		EnableAcl: true, EnableSymlinkCaching: true,
		ExtraCapabilities: fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_ASYNC_DIO | fuse.CAP_READDIRPLUS_AUTO |
			fuse.CAP_SETXATTR_EXT,
		Logger: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	})
	context.AfterFunc(ctx, d.dev.close)
	go func() {
		defer close(d.flush)
		d.fs.forgets.run(ctx, d.fs.remote)
	}()
	if o.Seeds != nil {
		d.reqs.Go(func() {
			if err := d.fs.seeds.run(ctx, o.Seeds, d.fs.frozen); err != nil && ctx.Err() == nil {
				o.Log.Warn("nothing is known ahead of the source's files", "err", err)
			}
		})
	}
	go d.serve()
	return d, nil
}

// serve reads requests until the mount or the daemon ends.
func (d *Daemon) serve() {
	defer close(d.done)
	err := d.loop()
	if errors.Is(err, errUnmounted) {
		d.fs.stream.unmounted()
	}
	d.cancel() // operations that wait for the source end
	d.reqs.Wait()
	<-d.flush
	d.dev.close()
	d.fs.close()
	if dir := d.fs.ov.keptIn; dir != "" && errors.Is(err, errUnmounted) { // nobody will need it
		if err := os.RemoveAll(dir); err != nil {
			d.log.Error("remove kept files", "err", err)
		}
	}
	if errors.Is(err, os.ErrClosed) || errors.Is(err, errUnmounted) {
		err = nil
	}
	d.mu.Lock()
	d.err = err
	d.mu.Unlock()
}

func (d *Daemon) loop() error {
	begin := d.mounted
	if d.o.TakeOver != nil {
		begin = d.takeOver
	}
	r, err := begin()
	if err != nil {
		return err
	}
	for {
		if r != nil {
			d.dispatch(r, func() {})
		}
		if r, err = d.next(d.dev.read); err != nil {
			return err
		}
	}
}

// mounted waits for the mount and answers INIT, before all other requests.
func (d *Daemon) mounted() (*request, error) {
	buf := make([]byte, readSize)
	n, err := d.dev.waitMounted(buf)
	if err != nil {
		return nil, err
	}
	d.init = append([]byte(nil), buf[:n]...)
	d.answer(buf[:n])
	if err := d.dev.register(); err != nil {
		return nil, err
	}
	if err := d.dev.readahead(readAhead); err != nil {
		d.log.Debug("keep the kernel's readahead", "err", err)
	}
	close(d.begun)
	return nil, nil
}

// request is one of the kernel's that has been read; back gives its memory back.
type request struct {
	in   []byte
	back func()
}

// next reads a request. Only one goroutine reads.
func (d *Daemon) next(read func([]byte) (int, error)) (*request, error) {
	if d.buf == nil {
		var err error
		if d.buf, err = buffers.get(); err != nil {
			return nil, err
		}
	}
	n, err := read(d.buf)
	if err != nil {
		return nil, err
	}
	if n < 40 {
		return nil, fmt.Errorf("read /dev/fuse: request of %d bytes: %w", n, io.ErrUnexpectedEOF)
	}
	if n <= smallRequest {
		p := bufs[0].Get().(*[]byte)
		copy(*p, d.buf[:n])
		return &request{in: (*p)[:n], back: func() { bufs[0].Put(p) }}, nil
	}
	whole := d.buf
	d.buf = nil
	return &request{in: whole[:n], back: func() { buffers.put(whole) }}, nil
}

// dispatch answers a request on a goroutine of its own.
func (d *Daemon) dispatch(r *request, done func()) {
	d.reqs.Go(func() {
		defer done()
		d.answer(r.in)
		if d.fs.ctx.Err() == nil { // a call that was given up may still use its buffers
			r.back()
		}
	})
}

const (
	readSize     = wire.MaxFileIO + 64<<10
	smallRequest = 8 << 10
	readAhead    = wire.FileReadAhead >> 10 // KB
)

var (
	buffers  readBuffers
	outSizes = [...]int{8 << 10, 72 << 10, 136 << 10, wire.MaxFileIO + 8<<10}
	bufs     [len(outSizes)]sync.Pool
)

func init() {
	for i, n := range outSizes {
		bufs[i].New = func() any { b := make([]byte, n); return &b }
	}
}

// replySize is how long the reply to a request may be.
func replySize(in []byte) int {
	u32 := func(off int) int {
		if len(in) < off+4 {
			return 0
		}
		return int(binary.NativeEndian.Uint32(in[off:]))
	}
	switch binary.NativeEndian.Uint32(in[4:]) {
	case 15, 28, 44: // READ, READDIR, READDIRPLUS
		return u32(56) + 1024
	case 22, 23: // GETXATTR, LISTXATTR
		return u32(40) + 1024
	case 39: // IOCTL
		return u32(68) + 1024
	}
	return outSizes[0]
}

func (d *Daemon) answer(in []byte) {
	need := replySize(in)
	var out []byte
	for i, n := range outSizes {
		if need <= n {
			p := bufs[i].Get().(*[]byte)
			out = *p
			defer func() {
				if d.fs.ctx.Err() == nil {
					bufs[i].Put(p)
				}
			}()
			break
		}
	}
	if out == nil {
		out = make([]byte, need)
	}
	d.busy.Add(1)
	n := d.handle(in, out)
	d.busy.Add(-1)
	defer d.fs.remote.Settled(binary.NativeEndian.Uint64(in[8:]) &^ uniqueResend) // after the kernel has the answer
	if n == 0 {
		return
	}
	if err := d.dev.write(out[:n]); err != nil && d.fs.ctx.Err() == nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		d.log.Warn("answer kernel", "opcode", binary.NativeEndian.Uint32(in[4:]), "err", err)
	}
}

// Settle waits until all that the tree has written is at the source. Who has stopped the tree finds it there afterwards.
func (d *Daemon) Settle(ctx context.Context) error { return d.fs.stream.settle(ctx) }

// Calm is Settle for who is about to stop the tree, so that the stop does not wait for all that lies in the window: for some seconds after it writes go to the source one by one.
func (d *Daemon) Calm(ctx context.Context) error { return d.fs.stream.becalm(ctx) }

// Unheard tells of which files writes have failed after the tree had been told that they are done, and it has not heard of it since, by fsync or close.
// Once its descriptors are others it never would.
func (d *Daemon) Unheard() map[uint64]error { return d.fs.stream.errs.unheard() }

// Busy says that an operation is at work.
func (d *Daemon) Busy() bool { return d.busy.Load() > 0 }

// Wait waits until the mount or the daemon has ended and tells why, nil if by unmount or Close.
func (d *Daemon) Wait() error {
	<-d.done
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Done is closed when serving has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Close ends the daemon, mounted or not. Operations at work fail, later ones find no connection
// (unless another process holds the descriptor: then they wait for it). It waits for calls of the Remote that are
// sending; where the network may be stuck, close the Remote first. May be called more than once.
func (d *Daemon) Close() error {
	d.cancel()
	return d.Wait()
}

// Seeded is closed when what the source tells ahead is here, or nothing will be.
func (d *Daemon) Seeded() <-chan struct{} { return d.fs.seeds.ready }

// Frozen is closed when it is known that the tree stands still at the source, and what it has changed until then.
func (d *Daemon) Frozen() <-chan struct{} { return d.fs.seeds.frozen }

// Granted drops what was kept local and forwards changes from now on. The source's server must have been granted before.
// An error that wraps ErrNoSuccessor, or another's, says that the mount will not outlive this daemon; all else has been done.
func (d *Daemon) Granted() error {
	d.fs.granted()
	d.fs.ov.keepGranted()
	return d.Hold()
}
