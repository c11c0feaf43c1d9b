package remotefs

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// A restore asks for the same names, attributes and pages that the tree has used, one after the other. The client asks for them ahead, as one: while the
// tree runs, and once more with an answer that comes at the freeze and tells what is different by then. So no round trip is left
// for what has been told.

// SeedPath is a path that the target should know before it asks.
type SeedPath struct {
	Path  string   // absolute, as the tree sees it
	Flags []uint32 // how it is going to be opened: one for each time
	// Data: its pages in memory are worth to be sent ahead, because nobody writes to it; Ranges are read in any case.
	Data   bool
	Ranges []wire.FileRange
}

const (
	maxSeedLinks = 40 // of one path, as the kernel follows
	// settledAfter: a file that was changed a moment ago may be changed again without a new time, which has the grain of a tick.
	settledAfter = 2 * time.Second
)

// seeding is what the source's part has said and the client been told.
type seeding struct {
	mu     sync.Mutex
	list   []SeedPath
	told   map[seedKey]*wire.FileSeed
	opened map[wire.FileOpened]int // by node (as the handle) and flags: how many handles the client has been told
	order  []seedKey
	frozen chan struct{} // closed by Frozen
	closed chan struct{} // by Close
	more   []SeedPath
	once   sync.Once
}

type seedKey struct {
	dir  uint64
	name string
}

// Seed says what to tell a client that asks while the tree runs. Before the first connection.
func (s *Server) Seed(list []SeedPath) {
	s.seed.mu.Lock()
	defer s.seed.mu.Unlock()
	s.seed.list = list
}

// Frozen says that the tree stands still, and what is to be known besides. Once.
func (s *Server) Frozen(more []SeedPath) {
	s.seed.once.Do(func() {
		s.seed.mu.Lock()
		s.seed.more = more
		s.seed.mu.Unlock()
		close(s.seed.frozen)
	})
}

// awaitFrozen holds a request up that asks for the freeze. It holds no lock: SetJournal waits for requests at work.
func (s *Server) awaitFrozen(j *job) {
	d := *j.d // the request is read again
	d.U64()
	d.U64()
	if !d.Bool() {
		return
	}
	select {
	case <-s.seed.frozen:
	case <-s.seed.closed:
	}
}

// opSeed: frozen → count, seeds
func (s *Server) opSeed(r *request) error {
	frozen := r.d.Bool()
	if err := r.end(); err != nil {
		return err
	}
	g := &s.seed
	g.mu.Lock()
	defer g.mu.Unlock()
	t := &telling{s: s, r: r, frozen: frozen, seen: map[seedKey]*wire.FileSeed{}}
	defer t.close()
	list := g.list
	if frozen {
		select {
		case <-g.frozen:
		default:
			return fmt.Errorf("server ends: %w", unix.ESHUTDOWN)
		}
		list = g.more
		for _, k := range g.order {
			if err := t.again(k, g.told[k]); err != nil {
				return err
			}
		}
	} else if g.told != nil {
		return fmt.Errorf("seeds were told: %w", unix.EALREADY)
	}
	for _, p := range list {
		if err := t.path(p); err != nil {
			return err
		}
	}
	if !frozen {
		g.told, g.order = t.seen, t.order
	}
	r.e.U32(uint32(len(t.out)))
	for _, f := range t.out {
		f.Put(&r.e)
	}
	return nil
}

// telling is one reply being made.
type telling struct {
	s     *Server
	r     *request
	seen  map[seedKey]*wire.FileSeed // known to the client when it has the reply
	order []seedKey
	out   []*wire.FileSeed
	size  int
	pins  []*node

	frozen bool
}

func (t *telling) close() {
	for _, n := range t.pins {
		t.s.tab.put(n)
	}
}

// node pins one until the reply is made.
func (t *telling) node(id uint64) (*node, error) {
	n, err := t.s.tab.get(id)
	if err == nil {
		t.pins = append(t.pins, n)
	}
	return n, err
}

const seedSize = 8 + 4 + 8 + wire.FileAttrSize + 4 + 4 + 4 // of a seed without what varies

// full says that the reply has no room for another seed of n names and parts.
func (t *telling) full(n int) bool { return t.size+seedSize+n > wire.MaxFileSeeds }

// look makes the seed of one name, with a lookup that counts; no name is the root. A name that can't be looked up for another reason than that it does not exist gives none.
func (t *telling) look(dir *node, name string) *wire.FileSeed {
	f := &wire.FileSeed{Dir: dir.id, Name: name}
	if name == "" { // the root, no lookup counts
		a, _, _, err := t.s.tab.stat(dir.fd)
		if err != nil {
			return nil
		}
		return &wire.FileSeed{Entry: wire.FileEntry{Node: dir.id, Attr: a}}
	}
	if inside(dir) != nil || len(name) > wire.MaxFileName {
		return nil
	}
	ent, err := t.s.lookup(t.r, dir, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return f
	case err != nil:
		return nil
	}
	f.Entry = ent
	if ent.Attr.Mode&unix.S_IFMT == unix.S_IFLNK {
		b := make([]byte, wire.MaxFileLink+1)
		n, err := t.node(ent.Node)
		if err != nil {
			return f
		}
		if k, err := unix.Readlinkat(n.fd, "", b); err == nil && k <= wire.MaxFileLink {
			f.Link = string(b[:k])
		}
	}
	return f
}

// add tells a seed.
func (t *telling) add(f *wire.FileSeed) {
	k := seedKey{f.Dir, f.Name}
	if t.seen[k] == nil {
		t.order = append(t.order, k)
	}
	t.seen[k] = f
	t.out = append(t.out, f)
	t.size += seedSize + len(f.Name) + len(f.Link) + 12*len(f.Handles) + 16*len(f.Data)
}

// again looks whether what was told of a name still holds, and tells it if not.
func (t *telling) again(k seedKey, old *wire.FileSeed) error {
	dir, err := t.node(max(k.dir, wire.FileRootNode))
	if err != nil {
		return err
	}
	f := t.look(dir, k.name)
	if f == nil {
		return fmt.Errorf("%q was told and can't be looked up now: %w", k.name, unix.EIO)
	}
	if same(f, old) {
		if f.Entry.Node != 0 && f.Dir != 0 {
			t.s.unlook(t.r, f.Entry.Node)
		}
		t.seen[k] = old
		return nil
	}
	if t.full(len(f.Name) + len(f.Link)) { // wrong seeds are worse than none
		return fmt.Errorf("too much has changed: %w", unix.E2BIG)
	}
	t.add(f)
	return nil
}

// same compares all but the access time, and what is about that.
func same(a, b *wire.FileSeed) bool {
	x, y := a.Entry, b.Entry
	x.Attr.Atime, y.Attr.Atime = wire.FileTime{}, wire.FileTime{}
	x.Attr.Flags, y.Attr.Flags = x.Attr.Flags&^wire.FileStill, y.Attr.Flags&^wire.FileStill
	return x == y && a.Link == b.Link
}

// path tells all names on the way to a path, links followed, and what else there is to say of its end.
func (t *telling) path(p SeedPath) error {
	todo := strings.Split(strings.TrimPrefix(path.Clean("/"+p.Path), "/"), "/")
	at := []uint64{wire.FileRootNode}
	if len(todo) == 1 && todo[0] == "" {
		return t.root(p)
	}
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(1, len(at)-1)]
			continue
		}
		k := seedKey{at[len(at)-1], name}
		f := t.seen[k]
		if f == nil {
			if t.full(2*wire.MaxFileName + wire.MaxFileLink) {
				return nil
			}
			dir, err := t.node(k.dir)
			if err != nil {
				return nil
			}
			if f = t.look(dir, name); f == nil {
				return nil
			}
			t.add(f)
		}
		switch {
		case f.Entry.Node == 0:
			return nil
		case f.Link != "":
			if links++; links > maxSeedLinks {
				return nil
			}
			if strings.HasPrefix(f.Link, "/") {
				at = at[:1]
			}
			todo = append(strings.Split(f.Link, "/"), todo...)
			continue
		}
		at = append(at, f.Entry.Node)
		if len(todo) == 0 {
			return t.file(p, k)
		}
	}
	return nil
}

// root tells of the root itself, which has no name.
func (t *telling) root(p SeedPath) error {
	k := seedKey{}
	if t.seen[k] == nil {
		n, err := t.node(wire.FileRootNode)
		if err != nil {
			return err
		}
		t.add(t.look(n, ""))
	}
	return t.file(p, k)
}

// file opens a file and finds the parts of it that are worth to be sent ahead.
func (t *telling) file(p SeedPath, k seedKey) error {
	f := t.seen[k]
	n, err := t.node(f.Entry.Node)
	dir := n != nil && n.mode == unix.S_IFDIR
	if err != nil || n.fs.hidden || !dir && n.mode != unix.S_IFREG {
		return err
	}
	count := map[uint32]int{}
	for _, flags := range p.Flags {
		if flags &= keptFlags; dir {
			flags = unix.O_DIRECTORY
		}
		count[flags]++
	}
	fresh := slices.Contains(t.out, f)
	for _, flags := range slices.Sorted(maps.Keys(count)) {
		if !t.frozen && !dir && flags&unix.O_ACCMODE != unix.O_RDONLY {
			continue // open for writing here, the running tree could not execute it (ETXTBSY)
		}
		key := wire.FileOpened{Flags: flags, Handle: n.id}
		for range count[flags] - t.s.seed.opened[key] {
			if !fresh { // told before the freeze: once more, for a descriptor that is opened in another way now
				if f, err = t.repeat(k, n); f == nil || err != nil {
					return err
				}
				fresh = true
			}
			fd, err := t.s.reopen(n.fd, int(flags)|unix.O_NONBLOCK|unix.O_NOCTTY)
			if err != nil {
				break // the restore will be told why
			}
			f.Handles = append(f.Handles, wire.FileOpened{Flags: flags, Handle: t.s.newHandle(t.r, n, fd, dir).id})
			t.s.seed.opened[key]++
			t.size += 12
		}
	}
	if !t.frozen && !dir && p.Data && len(f.Data) == 0 && settled(&f.Entry.Attr) {
		if data := t.worth(n, f.Entry.Attr.Size, p.Ranges); !t.full(16 * len(data)) {
			f.Data = data
			t.size += 16 * len(data)
		}
	}
	return nil
}

// repeat tells a name once more that was told before the freeze, if there is room.
func (t *telling) repeat(k seedKey, n *node) (*wire.FileSeed, error) {
	if t.full(len(k.name) + 12) {
		return nil, nil
	}
	dir, err := t.node(max(k.dir, wire.FileRootNode))
	if err != nil {
		return nil, err
	}
	f := t.look(dir, k.name)
	if f == nil || f.Entry.Node != n.id {
		return nil, fmt.Errorf("%q has changed after the freeze: %w", k.name, unix.EIO)
	}
	t.add(f)
	return f, nil
}

// settled says that a change of the file from now on has another time than its last.
func settled(a *wire.FileAttr) bool {
	last := max(a.Mtime.Sec, a.Ctime.Sec)
	return time.Since(time.Unix(last, 0)) > settledAfter+time.Second
}
