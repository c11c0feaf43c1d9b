package store

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// noEnd is the end of a range that goes up to the end of the file.
const noEnd = 1<<63 - 1

// hiddenDir is the directory in the root where copies lie that have no name (yet).
const hiddenDir = ".lazymig"

// doneFile says, beside the root, that a tree lives on the store: it is never touched again.
const doneFile = "done"

// Remote is the source: remotefs.Client.
type Remote interface {
	Lookup(ctx context.Context, who wire.FileCaller, dir uint64, name string) (wire.FileEntry, error)
	Forget(f []wire.FileForget)
	GetAttr(ctx context.Context, node uint64) (wire.FileAttr, error)
	Readlink(ctx context.Context, node uint64) ([]byte, error)
	Open(ctx context.Context, who wire.FileCaller, node uint64, flags uint32) (uint64, error)
	Read(ctx context.Context, node, h, off uint64, b []byte) (int, error)
	ReadBulk(ctx context.Context, node, h, off uint64, b []byte) (int, error) // for nobody who waits
	Release(node, h uint64)
	GetXattr(ctx context.Context, node uint64, name string, size uint32) (uint32, []byte, error)
	ListXattr(ctx context.Context, node uint64, size uint32) (uint32, []byte, error)
	OpenDir(ctx context.Context, who wire.FileCaller, node uint64) (uint64, error)
	ReadDir(ctx context.Context, node, h, off uint64, size uint32, plus bool) ([]wire.FileDirent, bool, error)
	Extents(ctx context.Context, node, h uint64, start, end int64) ([]wire.FileExtent, int64, error)
	Sum(ctx context.Context, node, h uint64, off, n int64) ([wire.FileSumSize]byte, wire.FileAttr, bool, error)
	Stamps(ctx context.Context, nodes []uint64) ([]remotefs.FileStamp, error)
	Path(ctx context.Context, node uint64) (string, error)
	Writers(ctx context.Context, nodes []uint64) (map[uint64]string, error)
	Opens(ctx context.Context) ([]remotefs.FileOpen, error)
	Remove(ctx context.Context, who wire.FileCaller, dir uint64, name string, node uint64, a wire.FileAttr) error
	Scan(ctx context.Context, node uint64, path, after string, contents bool) ([]wire.FileScanned, bool, error)
}

// Options of a Store. Dir and Remote are needed.
type Options struct {
	Dir    string // of the target; the store makes "root" and "shm" in it, and removes what was there unless it is done
	Own    string // root of the target's own files; empty: "/"
	Remote Remote
	Later  bool                                        // a daemon before this one has served the tree: what is open is asked of the source
	Busy   func() bool                                 // a process waits for an operation: bulk steps back. Nil: never
	Locals func(dir string) (map[uint64]string, error) // gives the target's own open files a name in dir; inode → name. Nil: there are none
	// What comes only because of where it lies: so many names and bytes a directory, and all together that nobody names. 0: 20,000 and 1 GB.
	MaxNames int
	MaxBytes int64
	Log      *slog.Logger // nil: silent
}

// Store copies. All methods may be called at the same time.
type Store struct {
	o         Options
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	pace      *pace
	between   time.Duration // two rounds
	surveying chan struct{} // there are surveys to be made
	hashing   chan struct{}
	copied    atomic.Int64
	final     atomic.Bool // the tree is stopped

	pass    sync.Mutex // one at a time brings copies up to date; guards all that is not under mu
	hidden  int        // the hidden directory
	root    *object
	parked  map[*object]struct{}
	wants   []goal // of all calls of Move
	locals  map[uint64]string
	outside map[string]string  // path → who on the source can write it, beside the tree
	asked   time.Time          // when that was asked
	byIno   map[uint64]*object // as of Settle
	bound   map[uint64]string  // inode → path below a directory of the target's own
	started bool
	rests   bool // settled: nothing is copied before the next Move
	plan    plan

	tree sync.RWMutex // held by a pass where it changes copies' names, and by who reads them without pass. After pass, before mu

	mu       sync.Mutex
	byNode   map[uint64]*object
	opens    map[uint64]*opens
	strange  map[uint64]struct{} // nodes that were changed, do not come yet, and have a goal for it
	away     map[uint64]struct{} // nodes that were found in what stays at the source
	remote   []string            // that
	dirty    map[*object]struct{}
	wake     chan struct{}
	settling int                // calls of Settle that wait or are at work
	yield    context.CancelFunc // ends the background's pass; nil: there is none
	goals    []goal             // not looked at yet
	ready    bool               // all is here but what is being written just now, as of the last round
	left     []Undecided        // undecided, as of the last round
	blocked  string             // why nothing is copied now
	touched  map[*object]int    // copies that may not be on the disk, and how often they were changed
	foreign  map[string]int     // path → how often somebody else has changed it
}

type opens struct {
	all, write int
	bound      bool // in a directory of the target's own
}

// New makes an empty store.
func New(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Own == "" {
		o.Own = "/"
	}
	if o.MaxNames == 0 {
		o.MaxNames = 20_000
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 30
	}
	if o.Busy == nil {
		o.Busy = func() bool { return false }
	}
	if _, err := os.Lstat(filepath.Join(o.Dir, doneFile)); err == nil {
		return nil, fmt.Errorf("make store in %s: a tree lives on what is there", o.Dir)
	}
	s := &Store{
		o: o, pace: newPace(o.Busy), between: restTime, hashing: make(chan struct{}, 2), surveying: make(chan struct{}, 1), parked: map[*object]struct{}{}, bound: map[uint64]string{},
		byNode: map[uint64]*object{}, opens: map[uint64]*opens{}, strange: map[uint64]struct{}{}, away: map[uint64]struct{}{}, dirty: map[*object]struct{}{},
		wake: make(chan struct{}, 1), hidden: -1, foreign: map[string]int{}, touched: map[*object]int{},
	}
	s.plan.init()
	s.ctx, s.cancel = context.WithCancel(ctx)
	root := filepath.Join(o.Dir, "root")
	if err := unmounted(root); err != nil {
		return nil, fmt.Errorf("make store: %w", err)
	}
	if err := os.RemoveAll(root); err != nil { // of a daemon that has ended: begun anew
		return nil, fmt.Errorf("make store: %w", err)
	}
	hidden := filepath.Join(root, hiddenDir)
	if err := os.MkdirAll(hidden, 0o711); err != nil { // the tree's users must come through, until there is nothing in it
		return nil, fmt.Errorf("make store: %w", err)
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make store: %w", err)
	}
	if s.hidden, err = unix.Open(hidden, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make store: %w", err)
	}
	s.root = &object{
		node: wire.FileRootNode, typ: unix.S_IFDIR, names: map[place]struct{}{}, applied: map[string]*object{}, made: true, fd: fd,
		how: howExpand, look: true, relist: true,
	}
	s.root.in = true
	s.byNode[wire.FileRootNode] = s.root
	s.dirty[s.root] = struct{}{}
	return s, nil
}

// unmounted checks that nothing is mounted below a directory which is to be removed.
func unmounted(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			return fmt.Errorf("%s is mounted in what is to be removed: unmount it", f[4])
		}
	}
	return nil
}

// Close ends copying; what is there stays.
func (s *Store) Close() error {
	s.cancel()
	s.wg.Wait()
	s.pass.Lock()
	defer s.pass.Unlock()
	s.tree.Lock() // Copy uses descriptors
	defer s.tree.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.byNode {
		if o.fd >= 0 {
			_ = unix.Close(o.fd)
			o.fd = -1
		}
	}
	if s.hidden >= 0 {
		_ = unix.Close(s.hidden)
		s.hidden = -1
	}
	return nil
}

// Move says what shall come; the first call begins.
func (s *Store) Move(w Want) {
	s.pass.Lock()
	defer s.pass.Unlock()
	s.wants = append(s.wants, w.goals()...)
	clear(s.plan.bad)
	s.rests = false
	s.mu.Lock()
	for _, p := range w.Remote {
		s.remote = append(s.remote, path.Clean("/"+p))
	}
	s.goals = append(s.goals, s.wants...) // all anew: what could not be may be now
	for node := range s.opens {
		s.goals = append(s.goals, goal{kind: goalOpen, node: node})
	}
	s.left, s.ready = []Undecided{{"/", comparing}}, false
	s.mu.Unlock()
	s.wakeUp()
	if !s.started && s.ctx.Err() == nil {
		s.started = true
		s.wg.Go(s.background)
		s.wg.Go(s.survey)
	}
}
