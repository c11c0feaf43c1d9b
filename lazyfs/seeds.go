package lazyfs

import (
	"context"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// Seeder is a Remote that tells ahead what a restore will want to know: remotefs.Client.
type Seeder interface {
	// Seed asks while the tree runs, and once more with frozen: that answer comes at the freeze and tells what is different by then.
	Seed(ctx context.Context, frozen bool) ([]wire.FileSeed, error)
}

// seeds answer for the source what it has told ahead, so that a restore waits for no round trip.
//
// What was told while the tree ran is good enough for who makes the capsule ready meanwhile, as the kernel keeps none of it. At the freeze the source
// says what is different: from then to the grant nothing changes there, and afterwards the tree itself does. Pages and handles are given out from the
// freeze on. Pages live a minute longer than the grant, or until the node is written or forgotten.
//
// Lookups are counted twice. The source counts one for each name that it told: held. The kernel counts those that it was answered from here: extra, of
// which the source knows nothing. When the names end, one that is held becomes one of the extra ones, and the rest is given back.
type seeds struct {
	Remote // the source

	ready  chan struct{} // closed when pages have been fetched that were told while the tree ran
	frozen chan struct{} // closed when what is known is right, or it is known that nothing is

	mu    sync.Mutex
	live  bool // names and attributes are given out
	names map[nameKey]uint64
	nodes map[uint64]*seed
}

type seed struct {
	attr        wire.FileAttr
	link        string
	handles     []wire.FileOpened // not given out yet
	pages       []extent
	held, extra uint64
	void        bool // a name that led to it no longer does: what is known of it may not be so
}

// extent is a part of a file.
type extent struct {
	off uint64
	b   []byte
}

const (
	// openMatters are the flags by which handles differ for the source; it ignores the others.
	openMatters  = syscall.O_ACCMODE | syscall.O_SYNC | syscall.O_DSYNC | syscall.O_NOATIME | syscall.O_DIRECTORY
	maxSeedPages = 64 << 20 // bytes of file contents
	maxSeedFile  = 32 << 20 // of one file
	seedPiece    = 256 << 10
	seedReaders  = 8
	fetchTime    = 5 * time.Second // on a slow line the rest is read when it is needed
	pagesStay    = time.Minute     // after the grant: the kernel has read by then what the tree needed to go on
)

func newSeeds(r Remote) *seeds {
	return &seeds{Remote: r, ready: make(chan struct{}), frozen: make(chan struct{}), names: map[nameKey]uint64{}, nodes: map[uint64]*seed{}}
}

// none is for a source that tells nothing: all is as if it did not exist.
func (s *seeds) none() {
	close(s.ready)
	close(s.frozen)
}

// isFrozen says whether attributes stay what they are.
func (s *seeds) isFrozen() bool {
	select {
	case <-s.frozen:
		return true
	default:
		return false
	}
}

// run asks. inval is called for what the kernel may have read while the tree ran.
func (s *seeds) run(ctx context.Context, from Seeder, inval func()) error {
	list, err := from.Seed(ctx, false)
	var wg sync.WaitGroup
	defer wg.Wait()
	fetch, stop := context.WithCancel(ctx)
	defer stop()
	if err == nil {
		s.learn(list)
		wg.Go(func() {
			s.fetch(fetch, list)
			close(s.ready)
		})
	} else {
		close(s.ready)
	}
	if err == nil || told(err) != 0 {
		different, ferr := from.Seed(ctx, true)
		if err == nil {
			err = ferr
		}
		if ferr != nil && told(ferr) == 0 {
			return ferr // the source is lost
		}
		stop() // it has ended, unless the source froze the tree without waiting for that
		wg.Wait()
		if err == nil {
			s.learn(different)
		}
		inval()
	}
	s.mu.Lock()
	if err != nil {
		s.live = false
		for _, n := range s.nodes {
			n.pages = nil
		}
	}
	s.mu.Unlock()
	if ctx.Err() == nil {
		close(s.frozen)
	}
	return err
}

// learn takes what the source tells. What it told before of the same name is void, and so are the pages of a file that has changed.
func (s *seeds) learn(list []wire.FileSeed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = true
	for i := range list {
		f := &list[i]
		k := nameKey{f.Dir, f.Name}
		if was := s.nodes[s.names[k]]; was != nil && s.names[k] != f.Entry.Node {
			was.void, was.pages = true, nil
		}
		s.names[k] = f.Entry.Node
		if f.Entry.Node == 0 {
			continue
		}
		n := s.nodes[f.Entry.Node]
		if n == nil {
			n = &seed{attr: f.Entry.Attr}
			s.nodes[f.Entry.Node] = n
		}
		if was := n.attr; was.Mtime != f.Entry.Attr.Mtime || was.Ctime != f.Entry.Attr.Ctime || was.Size != f.Entry.Attr.Size {
			n.pages = nil
		}
		n.attr, n.link = f.Entry.Attr, f.Link
		if f.Entry.Node != wire.FileRootNode { // that has no name, and nothing counts
			n.held++
		}
		n.handles = append(n.handles, f.Handles...)
	}
}

// fetch reads the pages that the source says to be worth it.
func (s *seeds) fetch(ctx context.Context, list []wire.FileSeed) {
	type piece struct{ node, handle, off, size uint64 }
	todo := make(chan piece)
	var wg sync.WaitGroup
	for range seedReaders {
		wg.Go(func() {
			for p := range todo {
				b := make([]byte, p.size)
				n, err := s.Remote.Read(ctx, p.node, p.handle, p.off, b)
				if err != nil || n == 0 {
					continue // it will be asked for
				}
				s.mu.Lock()
				if x := s.nodes[p.node]; x != nil {
					x.pages = append(x.pages, extent{p.off, b[:n]})
				}
				s.mu.Unlock()
			}
		})
	}
	room, until := uint64(maxSeedPages), time.Now().Add(fetchTime)
	for _, f := range list {
		h := readable(f.Handles)
		if h == nil || f.Entry.Node == 0 {
			continue
		}
		whole := min(room, maxSeedFile)
		room -= whole
		for _, r := range f.Data {
			for r.Len > 0 && r.Len <= whole && ctx.Err() == nil && time.Now().Before(until) {
				p := piece{f.Entry.Node, h.Handle, r.Off, min(r.Len, seedPiece)}
				todo <- p
				r.Off, r.Len, whole = r.Off+p.size, r.Len-p.size, whole-p.size
			}
		}
		room += whole
	}
	close(todo)
	wg.Wait()
}

func readable(list []wire.FileOpened) *wire.FileOpened {
	for i := range list {
		if list[i].Flags&syscall.O_ACCMODE != syscall.O_WRONLY {
			return &list[i]
		}
	}
	return nil
}

// known is what is known of a node before the grant; with mu.
func (s *seeds) known(node uint64) *seed {
	if n := s.nodes[node]; s.live && n != nil && !n.void {
		return n
	}
	return nil
}

func (s *seeds) Lookup(ctx context.Context, who wire.FileCaller, dir uint64, name string) (wire.FileEntry, error) {
	s.mu.Lock()
	node, ok := s.names[nameKey{dir, name}]
	if n := s.known(node); n != nil {
		defer s.mu.Unlock()
		n.extra++
		return wire.FileEntry{Node: node, Attr: n.attr}, nil
	}
	if ok && node == 0 && s.live {
		defer s.mu.Unlock()
		return wire.FileEntry{}, &wire.Error{Errno: syscall.ENOENT, Text: "told ahead"}
	}
	s.mu.Unlock()
	return s.Remote.Lookup(ctx, who, dir, name)
}

func (s *seeds) GetAttr(ctx context.Context, node uint64) (wire.FileAttr, error) {
	s.mu.Lock()
	if n := s.known(node); n != nil {
		defer s.mu.Unlock()
		return n.attr, nil
	}
	s.mu.Unlock()
	return s.Remote.GetAttr(ctx, node)
}

func (s *seeds) Readlink(ctx context.Context, node uint64) ([]byte, error) {
	s.mu.Lock()
	if n := s.known(node); n != nil && n.link != "" {
		defer s.mu.Unlock()
		return []byte(n.link), nil
	}
	s.mu.Unlock()
	return s.Remote.Readlink(ctx, node)
}

// handle takes a handle that is open at the source in the same way. Root, which is to say CRIU, may have it.
func (s *seeds) handle(who wire.FileCaller, node uint64, flags uint32) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.known(node)
	if n == nil || !s.isFrozen() || who.UID != 0 || flags&syscall.O_TRUNC != 0 {
		return 0, false
	}
	i := slices.IndexFunc(n.handles, func(h wire.FileOpened) bool { return h.Flags == flags&openMatters })
	if i < 0 {
		return 0, false
	}
	h := n.handles[i].Handle
	n.handles = slices.Delete(n.handles, i, i+1)
	return h, true
}

func (s *seeds) Open(ctx context.Context, who wire.FileCaller, node uint64, flags uint32) (uint64, error) {
	if h, ok := s.handle(who, node, flags&^syscall.O_DIRECTORY); ok {
		return h, nil
	}
	return s.Remote.Open(ctx, who, node, flags)
}

func (s *seeds) OpenDir(ctx context.Context, who wire.FileCaller, node uint64) (uint64, error) {
	if h, ok := s.handle(who, node, syscall.O_DIRECTORY); ok {
		return h, nil
	}
	return s.Remote.OpenDir(ctx, who, node)
}

// Read answers what lies in the fetched parts as a whole; a read across the end of the file is short.
func (s *seeds) Read(ctx context.Context, node, h, off uint64, b []byte) (int, error) {
	s.mu.Lock()
	if n := s.nodes[node]; n != nil && len(n.pages) > 0 && s.isFrozen() {
		if want := n.attr.Size - min(off, n.attr.Size); want > 0 {
			part := b[:min(want, uint64(len(b)))]
			if n.copy(part, off) {
				s.mu.Unlock()
				return len(part), nil
			}
		}
	}
	s.mu.Unlock()
	return s.Remote.Read(ctx, node, h, off, b)
}

// copy fills b, if all of it is here.
func (n *seed) copy(b []byte, off uint64) bool {
	for len(b) > 0 {
		k := 0
		for _, e := range n.pages {
			if e.off <= off && off < e.off+uint64(len(e.b)) {
				k = copy(b, e.b[off-e.off:])
				break
			}
		}
		if k == 0 {
			return false
		}
		b, off = b[k:], off+uint64(k)
	}
	return true
}

// begins is before nodes change: what is here of their contents is void.
func (s *seeds) begins(c *change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, node := range c.nodes {
		if n := s.nodes[node]; n != nil {
			n.pages = nil
			s.reap(node, n)
		}
	}
}

// ended: nothing is fetched after the freeze.
func (s *seeds) ended(*change) {}

// Forget tells the source what it counts.
func (s *seeds) Forget(f []wire.FileForget) {
	out := make([]wire.FileForget, 0, len(f))
	s.mu.Lock()
	for _, x := range f {
		if n := s.nodes[x.Node]; n != nil {
			k := min(n.extra, x.Count)
			n.extra -= k
			x.Count -= k
			if s.names == nil {
				n.pages = nil
			}
			s.reap(x.Node, n)
		}
		if x.Count > 0 {
			out = append(out, x)
		}
	}
	s.mu.Unlock()
	if len(out) > 0 {
		s.Remote.Forget(out)
	}
}

// reap drops a node of which nothing is left; with mu.
func (s *seeds) reap(node uint64, n *seed) {
	if n.held == 0 && n.extra == 0 && len(n.pages) == 0 && len(n.handles) == 0 {
		delete(s.nodes, node)
	}
}

// dropPages lets go of all that has been fetched.
func (s *seeds) dropPages() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, n := range s.nodes {
		n.pages = nil
		s.reap(node, n)
	}
}

// granted ends the names: from now on the tree changes them. tell gives back to the source what is no longer needed.
func (s *seeds) granted() (tell func()) {
	type open struct{ node, handle uint64 }
	var back []wire.FileForget
	var idle []open
	s.mu.Lock()
	s.live, s.names = false, nil
	for node, n := range s.nodes {
		if n.extra > 0 && n.held > 0 {
			n.extra, n.held = n.extra-1, n.held-1
		}
		if n.held > 0 {
			back = append(back, wire.FileForget{Node: node, Count: n.held})
			n.held = 0
		}
		for _, h := range n.handles {
			idle = append(idle, open{node, h.Handle})
		}
		n.handles = nil
		s.reap(node, n)
	}
	s.mu.Unlock()
	return func() {
		time.AfterFunc(pagesStay, s.dropPages)
		for _, h := range idle {
			s.Release(h.node, h.handle)
		}
		if len(back) > 0 {
			s.Remote.Forget(back)
		}
	}
}
