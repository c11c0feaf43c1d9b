package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Want is what shall come, beside what the tree has open. Paths are absolute and as the tree sees them.
type Want struct {
	With  []string `json:"with,omitempty"`  // whole trees
	Local []string `json:"local,omitempty"` // directories that are the target's own, whatever is in them
	Cwd   []string `json:"cwd,omitempty"`   // working directories
	Exe   []string `json:"exe,omitempty"`   // programs
}

// Bind is a directory of the target's own that is mounted over Path below the root.
type Bind struct {
	Path       string `json:"path"`
	TargetPath string `json:"target_path"`
}

// Plan is how the new root is put together: the store's directory, and what is mounted in it. /proc, /sys and /dev are empty
// directories there, for the target's.
type Plan struct {
	Root  string `json:"root"`
	Binds []Bind `json:"binds,omitempty"` // parents first
}

// Undecided is a path for which it is not known what the tree shall find there on the target.
type Undecided struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

const comparing = "is being compared with the target's own"

type goalKind int

const (
	goalOpen    goalKind = iota // a node that the tree has opened
	goalChanged                 // one that it has changed, or has open for writing: what lies beside it comes along
	goalPath                    // a path that is used
	goalWhole                   // a path whose tree comes
	goalLocal                   // a path that is the target's own
)

// goal is one thing that the plan has to have.
type goal struct {
	kind goalKind
	node uint64 // goalOpen, goalChanged
	path string
}

func (w *Want) goals() []goal {
	var g []goal
	add := func(kind goalKind, paths []string) {
		for _, p := range paths {
			g = append(g, goal{kind: kind, path: path.Clean("/" + p)})
		}
	}
	add(goalLocal, w.Local)
	add(goalWhole, w.With)
	add(goalPath, w.Cwd)
	add(goalPath, w.Exe)
	return g
}

// kernelDirs are the target's, mounted by who builds the root. In /dev only /dev/shm holds files, and is moved.
var kernelDirs = map[string]bool{"proc": true, "sys": true, "dev": true}

const shm = "shm"

// smallFile is the size up to which files come because they lie beside others.
const smallFile = 1 << 20

// plan is what has been decided. Guarded by Store.pass.
type plan struct {
	changed map[*object]struct{} // directories whose copies are to get other names
	bad     map[string]string    // path → why it can't be as it is wanted
	ask     []*object            // surveys to be made
	begun   bool                 // the root has been looked at
	fresh   bool                 // one has been made since the last round
	waiting []goal               // for a survey
	names   int                  // that come unasked
	bytes   int64
}

func (p *plan) init() { p.changed, p.bad = map[*object]struct{}{}, map[string]string{} }

// decide works off the goals, and then what nobody has named. With pass.
func (s *Store) decide(ctx context.Context) error {
	if !s.plan.begun {
		if err := s.listRoot(ctx); err != nil {
			return err
		}
	}
	if s.plan.fresh || s.final.Load() {
		s.mu.Lock()
		s.goals = append(s.goals, s.plan.waiting...)
		s.mu.Unlock()
		s.plan.waiting, s.plan.fresh = nil, false
	}
	for {
		s.mu.Lock()
		if len(s.goals) == 0 {
			s.mu.Unlock()
			return s.decideRest(ctx)
		}
		i := max(0, slices.IndexFunc(s.goals, func(g goal) bool { return g.kind == goalLocal })) // first: nothing below them needs a look
		g := s.goals[i]
		s.mu.Unlock()
		done, err := s.reach(ctx, g)
		if err != nil {
			return err
		}
		if !done {
			s.plan.waiting = append(s.plan.waiting, g)
		}
		s.mu.Lock()
		s.goals = slices.Delete(s.goals, i, i+1) // others are only added behind
		s.mu.Unlock()
	}
}

func (s *Store) listRoot(ctx context.Context) error {
	if s.o.Later {
		if err := s.reopened(ctx); err != nil {
			return err
		}
		s.o.Later = false
	}
	if err := s.list(ctx, s.root); err != nil {
		return err
	}
	s.plan.changed[s.root] = struct{}{}
	for name, x := range s.root.listing {
		if !kernelDirs[name] || !x.isDir() {
			continue
		}
		x.how = howBind
		if name != "dev" {
			continue
		}
		if err := s.list(ctx, x); err != nil {
			return err
		}
		if y := x.listing[shm]; y != nil && y.isDir() {
			s.mu.Lock()
			x.how, x.only = howExpand, shm
			y.how, y.relist = howMove, true
			s.dirty[y] = struct{}{}
			s.mu.Unlock()
			s.plan.changed[x] = struct{}{}
		}
	}
	s.plan.begun = true // not before: a round may be interrupted in the middle
	return nil
}

// decideRest decides about directories beside those that are used.
func (s *Store) decideRest(ctx context.Context) error {
	var visit func(o *object, p string) error
	visit = func(o *object, p string) error {
		for _, name := range slices.Sorted(maps.Keys(o.listing)) {
			x := o.listing[name]
			if !x.isDir() || o.only != "" {
				continue
			}
			q := path.Join(p, name)
			if x.how == howNone {
				if _, err := s.resolve(ctx, o, x, name, q); err != nil {
					return err
				}
			}
			if x.how == howExpand {
				if err := visit(x, q); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return visit(s.root, "/")
}

// reach decides what one goal needs. Not done: it waits for a survey.
func (s *Store) reach(ctx context.Context, g goal) (done bool, err error) {
	p := g.path
	if g.kind <= goalChanged {
		if s.comesAnyway(g.node) {
			return true, nil
		}
		p, err = s.o.Remote.Path(ctx, g.node)
		s.mu.Lock()
		delete(s.strange, g.node)
		s.mu.Unlock()
		if isGone(err) {
			return true, s.reachAlone(ctx, g.node)
		} else if err != nil {
			return false, fmt.Errorf("find path of node %d: %w", g.node, err)
		}
	}
	if g.kind == goalLocal {
		return true, s.reachLocal(ctx, p)
	}
	write := g.kind == goalChanged || g.kind == goalWhole
	w, err := s.walk(ctx, p, write)
	switch {
	case isGone(err) && g.kind <= goalChanged: // renamed or removed meanwhile: where it went is another goal
		return true, s.reachAlone(ctx, g.node)
	case isGone(err):
		return true, nil // the tree does not find it either
	case err != nil:
		return false, err
	case w.pending:
		return false, nil
	case w.at != "":
		same, err := s.below(ctx, g, p, w)
		if err == nil && !same { // the target's own, because it was the same when it was compared
			s.mu.Lock()
			s.goals = append(s.goals, goal{kind: goalChanged, node: g.node})
			s.mu.Unlock()
		}
		return true, err
	}
	s.need(w.up, w.o)
	if write {
		for _, d := range append(w.way, w.o) {
			d.must = true
		}
	}
	switch {
	case g.kind == goalWhole && w.o.isDir():
		s.whole(w.up, w.o)
	case g.kind == goalChanged && w.o.isDir():
		return s.wholeIfSmall(ctx, w.o, p)
	case g.kind == goalChanged && w.up != nil:
		return s.wholeIfSmall(ctx, w.up, path.Dir(p))
	}
	return true, nil
}

// comesAnyway says that a node and all beside it is moved, wherever it is.
func (s *Store) comesAnyway(node uint64) bool {
	s.mu.Lock()
	o := s.byNode[node]
	if o != nil {
		delete(s.strange, node)
	}
	s.mu.Unlock()
	if o == nil || o.how == howMove {
		return o != nil
	}
	if len(o.names) == 0 || o.isDir() {
		return false
	}
	for p := range o.names {
		if p.dir.how != howMove {
			return false
		}
	}
	o.needed = true
	return true
}

// need makes an object part of the store.
func (s *Store) need(up, o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.needed = true
	if o.isDir() && o.how == howNone {
		s.setLocked(o, howExpand)
	}
	if up != nil {
		s.plan.changed[up] = struct{}{}
	}
	if o.isDir() {
		s.plan.changed[o] = struct{}{}
	}
}

// setLocked decides about a directory. With mu.
func (s *Store) setLocked(o *object, h how) {
	o.how = h
	if h != howBind && (o.listing == nil || h == howMove) {
		o.relist = true
		s.dirty[o] = struct{}{}
	}
	s.plan.changed[o] = struct{}{}
}

// whole lets a directory come with all that is in it.
func (s *Store) whole(up, o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setLocked(o, howMove)
	if up != nil {
		s.plan.changed[up] = struct{}{}
	}
}

// wholeIfSmall lets a directory come because the tree writes in it.
func (s *Store) wholeIfSmall(ctx context.Context, o *object, p string) (done bool, err error) {
	if o.how == howMove || o.only != "" || o == s.root {
		return true, nil
	}
	m, err := s.surveyed(ctx, o, p)
	if err != nil || m == nil {
		return false, err
	}
	if s.small(m) {
		s.whole(nil, o)
	}
	return true, nil
}

// resolve decides about a directory that is not written: the target's own if it is the same, moved if it is small, else one by one
// what is in it. False: it is not known yet, or it must be said.
func (s *Store) resolve(ctx context.Context, up, o *object, name, p string) (bool, error) {
	if o.survey == nil && up.survey != nil {
		if m := up.survey.dirs[name]; m != nil && !m.more {
			o.survey = m
		}
	}
	if s.own(p) == s.skip() { // lazymig's own records are no part of the tree's files
		s.mu.Lock()
		defer s.mu.Unlock()
		s.setLocked(o, howBind)
		s.plan.changed[up] = struct{}{}
		return true, nil
	}
	m, err := s.surveyed(ctx, o, p)
	if err != nil || m == nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var st unix.Stat_t
	ours := unix.Lstat(s.own(p), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case m.equal && m.names > 0 && ours && st.Mode == o.attr.Mode && st.Uid == o.attr.UID && st.Gid == o.attr.GID && utf8.ValidString(p):
		o.from = s.own(p)
		s.setLocked(o, howBind)
	case s.small(m) && s.room(m.names, m.bytes):
		s.setLocked(o, howMove)
	case ours && !s.small(m) && s.room(m.loose, m.heavy):
		s.setLocked(o, howExpand)
	default:
		return false, nil
	}
	s.plan.changed[up] = struct{}{}
	return true, nil
}

// reachAlone is reachNameless for who does not hold tree.
func (s *Store) reachAlone(ctx context.Context, node uint64) error {
	s.tree.Lock()
	defer s.tree.Unlock()
	return s.reachNameless(ctx, node)
}

// reachNameless takes a file that is open and has no name.
func (s *Store) reachNameless(ctx context.Context, node uint64) error {
	s.mu.Lock()
	open, o := s.opens[node] != nil, s.byNode[node]
	s.mu.Unlock()
	if !open || o != nil && o.in {
		return nil
	}
	if o == nil {
		a, err := s.o.Remote.GetAttr(ctx, node)
		if isGone(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("look at node %d: %w", node, err)
		}
		s.mu.Lock()
		o = s.newLocked(node, a, false)
		o.bare = false
		s.mu.Unlock()
	}
	if err := s.make(o, ""); err != nil {
		return err
	}
	s.parked[o] = struct{}{}
	return nil
}

// missed takes what is open and has lost its name between one look and the next.
func (s *Store) missed(ctx context.Context) error {
	var nodes []uint64
	waiting := map[uint64]bool{}
	for _, g := range s.plan.waiting {
		waiting[g.node] = true
	}
	s.mu.Lock()
	for node, x := range s.opens {
		switch o := s.byNode[node]; {
		case x.bound, waiting[node], o != nil && o.in:
		case o == nil:
			s.goals = append(s.goals, goal{kind: goalOpen, node: node})
		default:
			nodes = append(nodes, node)
		}
	}
	s.mu.Unlock()
	for _, node := range nodes {
		if err := s.reachNameless(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// room takes from what may come unasked.
func (s *Store) room(names int, bytes int64) bool {
	if s.plan.names+names > s.o.MaxNames || s.plan.bytes+bytes > s.o.MaxBytes {
		return false
	}
	s.plan.names, s.plan.bytes = s.plan.names+names, s.plan.bytes+bytes
	return true
}

// walked is where a walk came to.
type walked struct {
	up, o    *object
	way      []*object // directories down to up
	at       string    // there the target's own begins
	declared bool      // somebody has said so
	pending  bool      // what a directory on the way will be is not known yet
}

// walk goes down to a path and takes what it comes through into the store. write: something there is or was written, so that no directory on
// the way can be the target's own, unless it was declared to be.
func (s *Store) walk(ctx context.Context, p string, write bool) (w walked, err error) {
	w.o = s.root
	done := "/"
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" {
			break
		}
		if !w.o.isDir() {
			return w, fmt.Errorf("%s is no directory: %w", done, unix.ENOENT)
		}
		if w.o.only != "" && w.o.only != name {
			return walked{at: done, declared: true}, nil
		}
		s.need(w.up, w.o)
		s.mu.Lock()
		stale := w.o.listing == nil || w.o.relist || w.o.listing[name] == nil
		s.mu.Unlock()
		if stale {
			if err := s.list(ctx, w.o); err != nil {
				return w, err
			}
			s.plan.changed[w.o] = struct{}{}
		}
		x := w.o.listing[name]
		if x == nil {
			return w, fmt.Errorf("%s: %w", p, unix.ENOENT)
		}
		w.way = append(w.way, w.o)
		w.up, w.o = w.o, x
		done = path.Join(done, name)
		if x.how == howNone && x.isDir() && !write {
			ok, err := s.resolve(ctx, w.up, x, name, done)
			if err != nil {
				return w, err
			}
			if !ok && x.survey == nil {
				return walked{pending: true}, nil
			}
		}
		if x.how == howBind {
			if !write || x.declared || x.from == "" {
				return walked{at: done, declared: x.declared || x.from == ""}, nil
			}
			s.mu.Lock()
			s.setLocked(x, howExpand) // it is no longer the same
			s.mu.Unlock()
		}
	}
	return w, nil
}

// reachLocal lets what is the target's own stand at a path.
func (s *Store) reachLocal(ctx context.Context, p string) error {
	if p == "/" {
		s.plan.bad[p] = "the root itself can't be declared to be local"
		return nil
	}
	w, err := s.walk(ctx, path.Dir(p), true)
	switch {
	case isGone(err), err == nil && w.at != "": // the tree does not find it either; in another one
		return nil
	case err != nil:
		return err
	}
	s.need(w.up, w.o)
	if w.o.listing == nil {
		if err := s.list(ctx, w.o); err != nil {
			return err
		}
	}
	x := w.o.listing[path.Base(p)]
	st, err := os.Lstat(s.own(p))
	switch {
	case x == nil || x.typ == unix.S_IFLNK: // links come as they are
		return nil
	case err != nil || st.Sys().(*syscall.Stat_t).Mode&unix.S_IFMT != x.typ:
		s.plan.bad[p] = "is declared to be local, but this host has nothing of its kind there"
		return nil
	case x.must:
		s.plan.bad[p] = "is declared to be local, but the tree writes there, or something in it is to come along"
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x.from, x.declared = s.own(p), true
	s.setLocked(x, howBind)
	s.plan.changed[w.o] = struct{}{}
	return nil
}

// below is a goal in something of the target's own: what is open must be the same there, and nothing may have been changed. False: it is
// another, though nobody has declared it to be the target's.
func (s *Store) below(ctx context.Context, g goal, p string, w walked) (ok bool, err error) {
	kernel := kernelDirs[strings.SplitN(p, "/", 3)[1]]
	if g.kind == goalOpen && !kernel {
		a, err := s.o.Remote.GetAttr(ctx, g.node)
		if err == nil {
			ok, err = s.sameAsOurs(ctx, g.node, s.own(p), a.Mode&unix.S_IFMT, int64(a.Size))
		}
		switch {
		case isGone(err):
			return true, nil
		case err != nil:
			return false, fmt.Errorf("compare %s: %w", p, err)
		case ok:
			s.bound[a.Ino] = p
		case !w.declared:
			return false, nil
		default:
			s.plan.bad[p] = "is in use, and the target's own is another"
		}
	}
	s.mu.Lock()
	if x := s.opens[g.node]; x != nil && g.kind <= goalChanged {
		x.bound = true
	}
	s.mu.Unlock()
	switch {
	case kernel:
	case g.kind == goalChanged:
		s.plan.bad[p] = "is written by the tree, but " + w.at + " is the target's own"
	case g.kind == goalWhole:
		s.plan.bad[p] = "is to come along, but " + w.at + " is the target's own"
	}
	return true, nil
}

// undecided lists what keeps the files from being the target's.
func (s *Store) undecided() []Undecided {
	var u []Undecided
	for p, why := range s.plan.bad {
		u = append(u, Undecided{p, why})
	}
	var failed []*object
	s.mu.Lock()
	for o := range s.dirty {
		if o.in && o.failed != "" {
			failed = append(failed, o)
		}
	}
	s.mu.Unlock()
	for _, o := range failed {
		u = append(u, Undecided{s.path(o), "can't be copied: " + o.failed})
	}
	for p, who := range s.outside {
		u = append(u, Undecided{p, who + ": end that process, or migrate both"})
	}
	for _, g := range s.plan.waiting {
		u = append(u, Undecided{cmp.Or(g.path, fmt.Sprintf("node %d, which is in use,", g.node)), comparing})
	}
	var visit func(o *object, p string)
	visit = func(o *object, p string) {
		for name, x := range o.listing {
			q := path.Join(p, name)
			switch {
			case o.only != "" && o.only != name:
			case x.isDir() && x.how == howNone && x.survey == nil:
				u = append(u, Undecided{q, comparing})
			case x.isDir() && x.how == howNone:
				u = append(u, Undecided{q, x.survey.reason()})
			case x.isDir() && x.how == howExpand:
				visit(x, q)
			case o.leaves(name, x):
				u = append(u, Undecided{q, fmt.Sprintf("is not used, and with %d bytes too large to come unasked: say --with or --local", x.attr.Size)})
			}
		}
	}
	visit(s.root, "/")
	return u
}

// reason says why a directory is neither the target's own nor moved.
func (m *summary) reason() string {
	size := fmt.Sprintf("%d names and %d MB", m.names, m.bytes>>20)
	if m.more {
		size = "more than " + size
	}
	return fmt.Sprintf("is another than the target's own (%s), and too large to come unasked (%s): say --with or --local", m.why, size)
}

// leaves says that a file in a directory that comes in parts does not come: it is large, nobody uses it, and the target has another.
func (o *object) leaves(name string, x *object) bool {
	if !x.isReg() || x.needed || x.declared || x.attr.Size <= smallFile {
		return false
	}
	return o.survey == nil || !o.survey.same[name]
}

// binds lists what is mounted in the root.
func (s *Store) binds() []Bind {
	var b []Bind
	var visit func(o *object, p string)
	visit = func(o *object, p string) {
		for name, x := range o.applied {
			q := path.Join(p, name)
			switch {
			case x.how == howBind && x.from != "":
				b = append(b, Bind{q, x.from})
			case x.isDir() && (x.how == howExpand && x.only == "" || x.how == howMove): // a directory may move after one in it was found to be the same
				visit(x, q)
			}
		}
	}
	visit(s.root, "/")
	return b
}
