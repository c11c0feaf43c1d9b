package lazyfs

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// A daemon that is killed after the grant is followed by another on the same open /dev/fuse (Options.TakeOver), which somebody else holds
// (Options.Keep), and what Inherit finds. The successor has
//
//	from the directory KeptDir   the kernel's INIT; local nodes, with what has changed them last
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

// keptState is what is not about one local node.
type keptState struct {
	Init  []byte            `json:"init"`
	Extra map[uint64]uint64 `json:"extra,omitempty"` // see ref
}

// keptLocal is a local node but its contents.
type keptLocal struct {
	ID      uint64            `json:"id"`
	Attr    wire.FileAttr     `json:"attr"`
	Mode    uint32            `json:"mode"`
	Lookups uint64            `json:"lookups"`
	Opens   int               `json:"opens"`
	Target  string            `json:"target,omitempty"`
	Xattrs  map[string][]byte `json:"xattrs,omitempty"`
	Done    []uint64          `json:"done,omitempty"`
	File    bool              `json:"file"`
}

const (
	keptName = "state"
	lifeName = "life"
	nodeName = "node-"
	dataName = "data-"
	maxDone  = 256 // a request is answered long before so many others have changed the same node
)

// writeWhole makes a file whole or not at all, as far as this process's end is concerned.
func writeWhole(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (o *overlay) keptPath(kind string, id uint64) string {
	return filepath.Join(o.keptIn, fmt.Sprintf("%s%x", kind, id&^localBit))
}

// keepAll begins to keep local nodes in dir. It is after the grant: there will be no new ones.
func (o *overlay) keepAll(dir string, init []byte) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("keep local files: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keptIn != "" {
		return nil
	}
	var err error
	if o.lock, err = lockDir(dir); err != nil { // nobody else has it
		return fmt.Errorf("keep local files: %w", err)
	}
	s := keptState{Init: init, Extra: map[uint64]uint64{}}
	for node, r := range o.refs {
		if r.extra > 0 {
			s.Extra[node] = r.extra
		}
	}
	if err := writeWhole(filepath.Join(dir, keptName), s); err != nil {
		return fmt.Errorf("keep local files: %w", err)
	}
	o.keptIn = dir
	for _, l := range o.locals {
		err := o.writeLocked(l)
		if err == nil && l.file != nil {
			err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", l.file.Fd()), unix.AT_FDCWD, o.keptPath(dataName, l.id), unix.AT_SYMLINK_FOLLOW)
		}
		if err != nil {
			o.keptIn = ""
			return fmt.Errorf("keep local file %x: %w", l.id, err)
		}
	}
	return nil
}

func (o *overlay) writeLocked(l *local) error {
	return writeWhole(o.keptPath(nodeName, l.id), keptLocal{
		ID: l.id, Attr: l.attr, Mode: l.mode, Lookups: l.lookups, Opens: l.opens, Target: l.target, Xattrs: l.xattrs, Done: l.done, File: l.file != nil,
	})
}

// keepLocked writes down how a node is after a request; 0: after something that is not a request, or is never repeated.
func (o *overlay) keepLocked(l *local, number uint64) {
	if o.keptIn == "" {
		return
	}
	if number != 0 {
		l.done = append(l.done[max(0, len(l.done)+1-maxDone):], number)
	}
	if err := o.writeLocked(l); err != nil { // it holds as long as this daemon does
		o.f.log.Error("keep local file for a successor", "node", l.id, "err", err)
	}
}

func (o *overlay) unkeepLocked(l *local) {
	if o.keptIn == "" {
		return
	}
	for _, kind := range []string{nodeName, dataName} {
		if err := os.Remove(o.keptPath(kind, l.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
			o.f.log.Error("remove local file", "node", l.id, "err", err)
		}
	}
}

// change is with for what changes a node, once for each request even if a daemon before this one has done it.
func (o *overlay) change(number, node uint64, fn func(*local) error) error {
	return o.with(node, func(l *local) error {
		if slices.Contains(l.done, number) {
			return nil
		}
		err := fn(l)
		if err == nil && o.locals[node] == l {
			o.keepLocked(l, number)
		}
		return err
	})
}

// load is the successor's keepAll.
func (o *overlay) load(from *Legacy) (init []byte, err error) {
	dir := from.path
	o.lock = from.lock
	var s keptState
	if err := readWhole(filepath.Join(dir, keptName), &s); err != nil {
		return nil, err
	}
	ents, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read kept files: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.keptIn = dir
	o.isGrant.Store(true)
	for node, n := range s.Extra {
		o.refs[node] = &ref{extra: n}
	}
	for _, e := range ents {
		if !strings.HasPrefix(e.Name(), nodeName) || strings.HasSuffix(e.Name(), ".new") {
			continue
		}
		var k keptLocal
		if err := readWhole(filepath.Join(dir, e.Name()), &k); err != nil {
			return nil, err
		}
		l := &local{
			id: k.ID, attr: k.Attr, mode: k.Mode, lookups: k.Lookups, opens: k.Opens, target: k.Target, xattrs: k.Xattrs, done: k.Done,
		}
		if k.File {
			if l.file, err = os.OpenFile(o.keptPath(dataName, k.ID), os.O_RDWR, 0); err != nil {
				return nil, fmt.Errorf("open kept file: %w", err)
			}
		}
		o.locals[l.id] = l
	}
	return s.Init, nil
}

func readWhole(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read what the daemon before has left: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// canResend says whether the kernel that sent INIT sends requests again: FUSE_INIT_EXT, and FUSE_HAS_RESEND of flags2.
func canResend(init []byte) bool {
	const flags, flags2 = 40 + 12, 40 + 16
	return len(init) >= flags2+4 && binary.NativeEndian.Uint32(init[flags:])&(1<<30) != 0 && binary.NativeEndian.Uint32(init[flags2:])&(1<<7) != 0
}

// ErrNoSuccessor says that the mount ends with this daemon.
var ErrNoSuccessor = errors.New("the kernel does not send FUSE requests again (Linux 6.9 does): the mount ends with its daemon")

// keep leaves all that a successor needs and gives the descriptor to whoever keeps it.
func (d *Daemon) keep() error {
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
	if err := d.fs.ov.keepAll(filepath.Join(d.o.StoreDir, KeptDir), d.init); err != nil {
		return err
	}
	fd, err := d.dev.dup()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return d.o.Keep(fd)
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
	if err := d.dev.resend(); err != nil {
		return nil, err
	}
	// What the source has kept may be older than what other requests have done since: no attribute is believed to be missing by it.
	d.fs.xclock.begin()
	var repeats sync.WaitGroup
	defer func() {
		d.reqs.Go(func() {
			repeats.Wait()
			d.fs.xclock.end()
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
	opForget      = 2
	opInterrupt   = 36
	opBatchForget = 42
)
