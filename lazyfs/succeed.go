package lazyfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// A daemon that is killed after Hold is followed by another on the same open /dev/fuse (Options.TakeOver), which somebody else holds
// (Options.Keep), and what Inherit finds. The successor has
//
//	from the directory KeptDir   the kernel's INIT, local nodes, the overlay (kept.go), streamed writes (stream.go)
//	from the kernel              all requests that were read and not answered, once more, marked (FUSE_NOTIFY_RESEND, Linux 6.9)
//	from the source              the answers to those of them that had been done (TakeOver of Remote)
//
// and needs nothing else: node IDs and handles are the source's own. The file of /dev/fuse must be the very one that requests were read
// from: when the last descriptor of a clone is closed, its requests fail (fs/fuse/dev.c, fuse_dev_release).

// KeptDir is where in StoreDir a daemon leaves what its successor needs.
const KeptDir = "fuse"

// Legacy is what a daemon has left.
type Legacy struct {
	Life uint32 // for remotefs' client: more than any before

	path string
	lock *os.File // the directory: locked as long as its daemon lives
}

// Inherit waits until the daemon before is dead, all of it: one that still reads /dev/fuse would take requests with it.
func Inherit(storeDir string) (*Legacy, error) {
	l := &Legacy{path: filepath.Join(storeDir, KeptDir)}
	var err error
	if l.lock, err = lockDir(l.path); err != nil {
		return nil, fmt.Errorf("take over mount: %w", err)
	}
	life := filepath.Join(l.path, lifeName)
	if err = readWhole(life, &l.Life); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	l.Life++
	if err == nil {
		err = writeWhole(life, l.Life)
	}
	if err != nil {
		l.lock.Close()
		return nil, fmt.Errorf("take over mount: %w", err)
	}
	return l, nil
}

// streamed says whether the daemon has streamed writes.
func (l *Legacy) streamed() bool {
	if l == nil {
		return false
	}
	_, err := os.Lstat(filepath.Join(l.path, windowName))
	return err == nil
}

func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// canResend says whether the kernel that sent INIT sends requests again: FUSE_INIT_EXT, and FUSE_HAS_RESEND of flags2.
func canResend(init []byte) bool {
	const flags, flags2 = 40 + 12, 40 + 16
	return len(init) >= flags2+4 && binary.NativeEndian.Uint32(init[flags:])&(1<<30) != 0 && binary.NativeEndian.Uint32(init[flags2:])&(1<<7) != 0
}

// ErrNoSuccessor says that the mount ends with this daemon.
var ErrNoSuccessor = errors.New("the kernel does not send FUSE requests again (Linux 6.9 does): the mount ends with its daemon")

// Hold makes the mount outlive this daemon: what a successor needs is written down, from now on all the time, and Options.Keep gets the descriptor.
// The overlay is held, too: whoever takes over before the grant goes on before the grant.
func (d *Daemon) Hold() error {
	if d.o.Keep == nil || d.o.TakeOver != nil {
		return nil
	}
	select {
	case <-d.begun:
	case <-d.done:
		return fmt.Errorf("keep mount: %w", errUnmounted)
	}
	if !canResend(d.init) {
		return ErrNoSuccessor
	}
	if again, err := d.fs.ov.keepAll(filepath.Join(d.o.StoreDir, KeptDir), d.init); again || err != nil {
		return err
	}
	if d.o.Stream {
		d.fs.stream.begin(filepath.Join(d.o.StoreDir, KeptDir))
	}
	fd, err := d.dev.dup()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return d.o.Keep(fd)
}

// handle gives a request to go-fuse. Before the grant, if the mount is held, requests that change names go one after the other.
func (d *Daemon) handle(in, out []byte) int {
	o := d.fs.ov
	op := binary.NativeEndian.Uint32(in[4:])
	if !opNames[op] || !o.held() {
		n, _ := d.ps.HandleRequest([][]byte{in}, [][]byte{out})
		return n
	}
	d.holdMu.Lock()
	defer d.holdMu.Unlock()
	unique := binary.NativeEndian.Uint64(in[8:])
	if r := o.heldReply(unique &^ uniqueResend); r != nil {
		n := copy(out, r)
		binary.NativeEndian.PutUint64(out[8:], unique)
		return n
	}
	n, _ := d.ps.HandleRequest([][]byte{in}, [][]byte{out})
	o.keepReply(op, unique&^uniqueResend, out[:n])
	return n
}

// takeOver begins where another daemon was killed. Requests that come again are on the head of the kernel's queue (fuse_resend), so they
// are known when the first other one comes, or none; only forgets and interrupts are no part of that queue. It returns that first other one.
func (d *Daemon) takeOver() (*request, error) {
	out := make([]byte, outSizes[0])
	if n, _ := d.ps.HandleRequest([][]byte{d.init}, [][]byte{out}); n == 0 { // the kernel has its answer since long
		return nil, errors.New("take over mount: kept INIT is not understood")
	}
	if err := d.dev.adopt(); err != nil {
		return nil, err
	}
	if err := d.fs.remote.TakeOver(d.fs.ctx); err != nil {
		return nil, err
	}
	if err := d.fs.stream.resume(filepath.Join(d.o.StoreDir, KeptDir)); err != nil {
		return nil, fmt.Errorf("take over mount: %w", err)
	}
	if err := d.dev.resend(); err != nil {
		return nil, err
	}
	// What the source has kept may be older than what other requests have done since: no attribute is believed to be missing by it.
	d.fs.xclock.begin()
	d.fs.repeats.Add(1)
	var repeats sync.WaitGroup
	defer func() {
		d.reqs.Go(func() {
			repeats.Wait()
			d.fs.xclock.end()
			d.fs.repeats.Add(-1)
		})
	}()
	again := map[uint64]bool{}
	for {
		r, err := d.next(d.dev.tryRead)
		switch {
		case errors.Is(err, unix.EAGAIN):
			d.fs.remote.TakenOver(again)
			return nil, nil
		case err != nil:
			return nil, err
		}
		unique := binary.NativeEndian.Uint64(r.in[8:])
		switch op := binary.NativeEndian.Uint32(r.in[4:]); {
		case unique&uniqueResend != 0:
			again[unique&^uniqueResend] = true
			repeats.Add(1)
			d.dispatch(r, repeats.Done)
		case op == opForget || op == opInterrupt || op == opBatchForget:
			d.dispatch(r, func() {})
		default:
			d.fs.remote.TakenOver(again)
			return r, nil
		}
	}
}

// Opcodes of linux/fuse.h that are told apart before they are handled.
const (
	opLookup      = 1
	opForget      = 2
	opInterrupt   = 36
	opBatchForget = 42
)

// opNames change the overlay: LOOKUP (it counts), SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, CREATE, RENAME2, TMPFILE.
var opNames = map[uint32]bool{opLookup: true, 6: true, 8: true, 9: true, 10: true, 11: true, 12: true, 13: true, 35: true, 45: true, 51: true}
