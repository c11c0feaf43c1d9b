package remotefs

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// key is the identity of a node. Directories count once per mount: the target's kernel allows a directory inode
// only one name, and a bind mount gives it a second. For all else two names must be one node, or caches disagree.
type key struct{ dev, ino, mnt uint64 }

type node struct {
	id   uint64
	fd   int // O_PATH
	key  key
	mode uint32 // type bits
	fs   *fsInfo

	// table.mu
	lookups uint64
	pins    int // operations at work
	gone    bool
	opened  bool // counted in Stats.Files
}

// fsInfo is what is known of a source device.
type fsInfo struct {
	index  uint64 // 0: the root's
	mount  int64  // flags of statfs, as far as they are about the time of access
	hidden bool   // a window into the kernel: its insides are not served
}

// ino makes inode numbers unique over the source's devices.
func (f *fsInfo) ino(ino uint64) uint64 { return f.index<<48 ^ ino }

// still says whether reading a file leaves it as it is: as the kernel decides about the time of access (fs/inode.c, relatime_need_update).
func (f *fsInfo) still(st *unix.Statx_t) bool {
	const day, soon = 24 * 60 * 60, 60 * 60
	after := func(a, b unix.StatxTimestamp) bool { return a.Sec > b.Sec || a.Sec == b.Sec && a.Nsec > b.Nsec }
	switch {
	case f.mount&unix.ST_NOATIME != 0, f.mount&unix.ST_NODIRATIME != 0 && uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR:
		return true
	case f.mount&unix.ST_RELATIME == 0:
		return false
	}
	return after(st.Atime, st.Mtime) && after(st.Atime, st.Ctime) && time.Now().Unix()-st.Atime.Sec < day-soon
}

type handle struct {
	id    uint64
	node  *node         // pinned
	ready chan struct{} // of a client's own: closed when it is open, or can't be

	// table.mu; fd and dir stay what they are once it is open
	fd     int // -1: it is not open
	dir    *dirState
	err    error // why not
	pins   int
	gone   bool
	reaped bool
}

// table holds nodes and handles. IDs are never used again.
type table struct {
	mu      sync.Mutex
	nodes   map[uint64]*node
	byKey   map[key]*node
	handles map[uint64]*handle
	devs    map[uint64]*fsInfo
	next    uint64
	nextDev uint64

	journal journal
}

// stat tells the attributes of the file behind fd and which file it is.
func (t *table) stat(fd int) (wire.FileAttr, key, *fsInfo, error) {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return wire.FileAttr{}, key{}, nil, err
	}
	k := keyIn(&st)
	f := t.fsOf(k.dev, fd)
	ts := func(x unix.StatxTimestamp) wire.FileTime { return wire.FileTime{Sec: x.Sec, Nsec: x.Nsec} }
	flags := uint32(0)
	if f.still(&st) {
		flags |= wire.FileStill
	}
	if typ := uint32(st.Mode) & unix.S_IFMT; typ == unix.S_IFDIR || typ == unix.S_IFREG && !f.hidden {
		flags |= wire.FileOpens
	}
	return wire.FileAttr{
		Flags: flags, Ino: f.ino(st.Ino), Size: st.Size, Blocks: st.Blocks,
		Atime: ts(st.Atime), Mtime: ts(st.Mtime), Ctime: ts(st.Ctime),
		Mode: uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid,
		Rdev: uint32(unix.Mkdev(st.Rdev_major, st.Rdev_minor)), Blksize: st.Blksize,
	}, k, f, nil
}

func statx(fd int, st *unix.Statx_t) error {
	const mask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_SYNC_AS_STAT|unix.AT_NO_AUTOMOUNT, mask, st); err != nil {
		return fmt.Errorf("statx: %w", err)
	}
	return nil
}

func keyIn(st *unix.Statx_t) key {
	k := key{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR {
		k.mnt = st.Mnt_id
	}
	return k
}

// keyOf tells which file is behind fd.
func keyOf(fd int) (key, error) {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return key{}, err
	}
	return keyIn(&st), nil
}

func (t *table) fsOf(dev uint64, fd int) *fsInfo {
	t.mu.Lock()
	f := t.devs[dev]
	t.mu.Unlock()
	if f != nil {
		return f
	}
	var s unix.Statfs_t
	told := unix.Fstatfs(fd, &s) == nil
	hidden := told && kernelFS[uint32(s.Type)]
	t.mu.Lock()
	defer t.mu.Unlock()
	if f = t.devs[dev]; f == nil {
		f = &fsInfo{index: t.nextDev, hidden: hidden, mount: s.Flags}
		t.devs[dev] = f
		t.nextDev++
	}
	return f
}

// kernelFS are file systems whose insides are the source's kernel, not files.
var kernelFS = map[uint32]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true,
	unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true, unix.SECURITYFS_MAGIC: true, unix.BPF_FS_MAGIC: true,
	unix.DEVPTS_SUPER_MAGIC: true, unix.EFIVARFS_MAGIC: true, unix.PSTOREFS_MAGIC: true, unix.SELINUX_MAGIC: true,
	unix.NSFS_MAGIC: true, unix.BINFMTFS_MAGIC: true, 0x62656570 /* configfs */ : true, 0x65735543 /* fusectl */ : true,
}

// add makes fd, which it takes over, a node with one lookup more.
func (t *table) add(fd int) (*node, wire.FileAttr, error) {
	a, k, f, err := t.stat(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, a, err
	}
	// The kernel at the target asks for ACLs and capabilities of nearly each file: one round trip less.
	if n, err := unix.Listxattr("/proc/self/fd/"+strconv.Itoa(fd), nil); err == nil && n == 0 {
		a.Flags |= wire.FileBare
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byKey[k]; n != nil { // holds a descriptor, so the number can't have been given to another file
		n.lookups++
		if a.Nlink > 1 && n.mode != unix.S_IFDIR { // perhaps by another name
			t.journal.send(message(journalNamed, n.id), fd)
		}
		_ = unix.Close(fd)
		return n, a, nil
	}
	t.next++
	n := &node{id: t.next, fd: fd, key: k, mode: a.Mode & unix.S_IFMT, fs: f, lookups: 1}
	t.nodes[n.id], t.byKey[k] = n, n
	t.journal.node(n.id, n.fd, n.mode, f.index, f.hidden) // before anybody else finds it
	return n, a, nil
}

// get pins a node for the time of an operation; put ends that.
func (t *table) get(id uint64) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil {
		return nil, unix.ESTALE
	}
	n.pins++
	return n, nil
}

func (t *table) put(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.pins--
	t.reap(n)
}

// reap closes a node that nobody needs. Called with mu.
func (t *table) reap(n *node) {
	if n.lookups == 0 && n.id != wire.FileRootNode && !n.gone {
		n.gone = true // no longer found; a new lookup of the file makes a new node
		delete(t.nodes, n.id)
		if t.byKey[n.key] == n {
			delete(t.byKey, n.key)
		}
		t.journal.send(message(journalGone, n.id))
	}
	if n.gone && n.pins == 0 && n.fd >= 0 {
		_ = unix.Close(n.fd)
		n.fd = -1
	}
}

// forget takes lookups back; it gives how many there were to take.
func (t *table) forget(id, count uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil {
		return 0
	}
	count = min(n.lookups, count)
	n.lookups -= count
	t.reap(n)
	return count
}

// open makes fd, which it takes over, a handle of n; request is who asked for it.
func (t *table) open(n *node, fd int, dir bool, request uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	h := &handle{id: t.next, fd: fd, node: n}
	if dir {
		h.dir = &dirState{}
	}
	n.pins++
	t.handles[h.id] = h
	t.journal.handle(h.id, fd, n.id, dir, request)
	return h
}

func (t *table) handle(id uint64) (*handle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[id]
	switch {
	case h == nil:
		return nil, unix.EBADF
	case h.err != nil:
		return nil, h.err
	case h.fd < 0: // it comes later on the lane
		return nil, unix.EBADF
	}
	h.pins++
	return h, nil
}

func (t *table) putHandle(h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h.pins--
	t.reapHandle(h)
}

func (t *table) reapHandle(h *handle) {
	if h.gone && h.pins == 0 && !h.reaped {
		h.reaped = true
		if h.fd >= 0 {
			_ = unix.Close(h.fd)
			h.fd = -1
		}
		h.node.pins--
		t.reap(h.node)
	}
}

func (t *table) release(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[id]
	if h == nil {
		return
	}
	delete(t.handles, id)
	t.journal.send(message(journalReleased, id))
	h.gone = true
	t.reapHandle(h)
}

// closeAll ends everything; operations must have ended.
func (t *table) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, h := range t.handles {
		delete(t.handles, id)
		h.gone = true
		t.reapHandle(h)
	}
	for id, n := range t.nodes {
		n.lookups, n.gone = 0, true
		delete(t.nodes, id)
		t.reap(n)
	}
	clear(t.byKey)
}
