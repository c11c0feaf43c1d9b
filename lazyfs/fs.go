package lazyfs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazymig/lazymig/wire"
)

// localBit marks node IDs and handles of files that exist on the target only.
const localBit = 1 << 63

func isLocal(node uint64) bool { return node&localBit != 0 }

// fsys is the file system: fs_*.go decide between source and overlay.
type fsys struct {
	fuse.RawFileSystem // what is not here: ENOSYS

	ctx      context.Context
	log      *slog.Logger
	remote   Remote // stream above changes above names above ahead above seeds above the source
	names    *dirNames
	ahead    *ahead
	seeds    *seeds
	dev      *device
	ov       *overlay
	forgets  forgetQueue
	clock    changeClock // all changes at the source
	xclock   changeClock // those of extended attributes
	bare     bareSet
	openable idSet // nodes that nothing but the kernel's own rules keeps from being read
	own      idSet // handles of openAs that the source has been told of by this daemon, if it succeeds another
	succeeds bool
	copies   copies
	watch    watching
	attrs    *attrs
	stream   *stream
	streams  bool           // writes may be streamed
	asks     sync.WaitGroup // for attributes that nobody waits for
	waiting  atomic.Int32   // operations that a lost source holds up
	repeats  atomic.Int32   // requests of a daemon before this one that are not answered

	earlyMu sync.Mutex
	early   map[uint64]struct{} // files that were opened while the tree still ran at the source

	listings listings

	dirMu   sync.Mutex
	dirs    map[uint64]*dirHandle
	nextDir uint64
}

func newFsys(ctx context.Context, o Options, dev *device) *fsys {
	s := newSeeds(o.Remote)
	if o.Seeds == nil {
		s.none()
	}
	a := newAhead(ctx, s)
	f := &fsys{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), succeeds: o.TakeOver != nil, streams: o.Stream || o.TakeOver.streamed(), ctx: ctx, log: o.Log, ahead: a, seeds: s, dev: dev, early: map[uint64]struct{}{},
		dirs: map[uint64]*dirHandle{}, forgets: forgetQueue{wake: make(chan struct{}, 1)},
	}
	f.attrs = newAttrs()
	f.names = newNames(ctx, a, f.forgets.add)
	f.stream = newStream(ctx, f, &changes{Remote: f.names, knowers: []knower{f.attrs, f.names, a, s}})
	f.remote = f.stream
	f.ov = newOverlay(f, o.StoreDir)
	a.on = f.alone
	f.names.on = f.alone
	return f
}

// alone says that nothing changes the source but requests that come now: a restore's files are told ahead, and what a daemon before this one had
// begun comes again.
func (f *fsys) alone() bool { return f.ov.isGranted() && f.repeats.Load() == 0 }

// close lets go of local files; no operation is at work any more.
func (f *fsys) close() {
	f.asks.Wait() // their context has ended
	f.stream.close()
	f.names.wg.Wait()
	f.ahead.wg.Wait()
	f.copies.close()
	f.ov.close()
}

func (f *fsys) String() string { return "lazymig" }

func caller(h *fuse.InHeader) wire.FileCaller {
	return wire.FileCaller{UID: h.Uid, GID: h.Gid, Number: number(h)}
}

// uniqueResend is FUSE_UNIQUE_RESEND, linux/fuse.h since v6.9: in the number of a request that the kernel sends again.
const uniqueResend = 1 << 63

// number is the kernel's own for a request, the same when it is sent again.
func number(h *fuse.InHeader) uint64 { return h.Unique &^ uniqueResend }

// status is the one place where errors become what the kernel is told. A lost source fails operations before the
// grant, so that the restore ends; after it they wait for the source, or for the end.
func (f *fsys) status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if own, ok := errors.AsType[errno](err); ok {
		return fuse.Status(own)
	}
	if told, ok := errors.AsType[*wire.Error](err); ok {
		if told.Errno == 0 {
			return fuse.EIO
		}
		return fuse.Status(told.Errno)
	}
	if !f.ov.isGranted() || f.ctx.Err() != nil {
		return fuse.EIO
	}
	f.log.Error("source lost, operation waits", "err", err)
	f.waiting.Add(1)
	<-f.ctx.Done()
	return fuse.EIO
}

// errno is an error of the target's own, beside those that the source tells.
type errno syscall.Errno

func (e errno) Error() string { return "local: " + syscall.Errno(e).Error() }

// own makes an error of a local system call one.
func own(err error) error {
	if n := wire.ErrnoOf(err); n != 0 {
		return errno(n)
	}
	if err != nil {
		return errno(syscall.EIO)
	}
	return nil
}

func fillAttr(out *fuse.Attr, a *wire.FileAttr) {
	out.Ino, out.Size, out.Blocks = a.Ino, a.Size, a.Blocks
	out.Atime, out.Atimensec = uint64(a.Atime.Sec), a.Atime.Nsec
	out.Mtime, out.Mtimensec = uint64(a.Mtime.Sec), a.Mtime.Nsec
	out.Ctime, out.Ctimensec = uint64(a.Ctime.Sec), a.Ctime.Nsec
	out.Mode, out.Nlink, out.Uid, out.Gid = a.Mode, a.Nlink, a.UID, a.GID
	out.Rdev, out.Blksize = a.Rdev, a.Blksize
}

func (f *fsys) fillEntry(out *fuse.EntryOut, e *wire.FileEntry) {
	out.NodeId, out.Generation = e.Node, 1
	out.SetEntryTimeout(f.valid())
	out.SetAttrTimeout(f.valid())
	fillAttr(&out.Attr, &e.Attr)
	f.knows(e.Node, &e.Attr)
}

// knows notes what the kernel is told of a node.
func (f *fsys) knows(node uint64, a *wire.FileAttr) {
	f.ahead.knows(node, a)
	if a.Flags&wire.FileOpens != 0 {
		f.openable.add(node)
	}
}

// fillLocal is fillEntry for what may be different after the grant: not kept by the kernel.
func fillLocal(out *fuse.EntryOut, e *wire.FileEntry) {
	out.NodeId, out.Generation = e.Node, 1
	fillAttr(&out.Attr, &e.Attr)
}

// forget takes back lookups that the kernel, or this package, no longer needs.
func (f *fsys) forget(node, n uint64) {
	if n = f.ov.keep(node, n); n > 0 {
		f.forgets.add(node, n)
	}
}

// Forget must not wait for the network.
func (f *fsys) Forget(node, n uint64) {
	if isLocal(node) {
		f.ov.forgetLocal(node, n)
		return
	}
	f.bare.drop(node)
	f.openable.drop(node)
	f.ahead.forgot(node)
	f.attrs.forgot(node)
	f.stream.errs.forgot(node)
	f.copies.forgot(node)
	f.names.forgot(node)
	f.listings.forgot(node)
	f.watch.forgot(node)
	f.forget(node, n)
}

// forgetQueue sends forgets behind the kernel's back, as many at once as there are.
type forgetQueue struct {
	mu   sync.Mutex
	q    []wire.FileForget
	wake chan struct{}
}

func (q *forgetQueue) add(node, n uint64) {
	q.mu.Lock()
	q.q = append(q.q, wire.FileForget{Node: node, Count: n})
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *forgetQueue) run(ctx context.Context, r Remote) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		q.mu.Lock()
		b := q.q
		q.q = nil
		q.mu.Unlock()
		r.Forget(b)
	}
}

// changeClock tells whether attributes that were fetched ahead may have been changed since by the tree itself: the
// kernel guards its own requests against that, not what lies in a buffer here.
type changeClock struct{ begun, ended atomic.Uint64 }

func (c *changeClock) begin()        { c.begun.Add(1) }
func (c *changeClock) end()          { c.ended.Add(1) }
func (c *changeClock) quiet() uint64 { return c.ended.Load() } // read before a fetch

// fresh says that no change was at work at quiet and none has begun since.
func (c *changeClock) fresh(quiet uint64) bool { return c.begun.Load() == quiet }
