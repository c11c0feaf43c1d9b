package store

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Want is what shall come, beside what the tree has open. Paths are absolute and as the tree sees them.
type Want struct {
	With  []string `json:"with,omitempty"`  // whole trees
	Local []string `json:"local,omitempty"` // directories that are the target's own, whatever is in them
	Cwd   []string `json:"cwd,omitempty"`   // working directories
	Exe   []string `json:"exe,omitempty"`   // programs

	Remote []string `json:"remote,omitempty"` // directories that stay at the source, whatever is in them
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

// Comparing says that it will be known in a while.
func (u Undecided) Comparing() bool { return u.Reason == comparing }

type goalKind int

const (
	goalOpen    goalKind = iota // a node that the tree has opened
	goalChanged                 // one that it has changed, or has open for writing: what lies beside it comes along
	goalPath                    // a path that is used
	goalWhole                   // a path whose tree comes
	goalLocal                   // a path that is the target's own
	goalRemote                  // a path that stays at the source
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
	add(goalRemote, w.Remote)
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
	same    map[uint64]compared  // files that were found to be as the target's own, by node
	names   int                  // that come unasked
	bytes   int64
}

func (p *plan) init() {
	p.changed, p.bad, p.same = map[*object]struct{}{}, map[string]string{}, map[uint64]compared{}
}

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
	s.mu.Lock()
	left := len(s.goals)
	s.mu.Unlock()
	for ; ; left-- {
		s.mu.Lock()
		// What comes up meanwhile is for the next round: who writes as fast as it is looked at would hold this one, and with it pass, which a survey needs
		// before it is known what becomes of what is written.
		if len(s.goals) == 0 || left <= 0 && !s.final.Load() {
			s.mu.Unlock()
			return s.decideRest(ctx)
		}
		i := max(0, slices.IndexFunc(s.goals, func(g goal) bool { return g.kind >= goalLocal })) // first: nothing below them needs a look
		g := s.goals[i]
		s.mu.Unlock()
		done, err := s.reach(ctx, g)
		if err != nil {
			return err
		}
		if !done && !slices.Contains(s.plan.waiting, g) {
			s.plan.waiting = append(s.plan.waiting, g)
		}
		s.mu.Lock()
		if !done && g.kind == goalChanged {
			s.strange[g.node] = struct{}{} // it is looked at again
		}
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
	switch g.kind {
	case goalLocal:
		return true, s.reachLocal(ctx, p)
	case goalRemote:
		return true, s.reachRemote(ctx, p)
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

// room takes from what may come unasked.
func (s *Store) room(names int, bytes int64) bool {
	if s.plan.names+names > s.o.MaxNames || s.plan.bytes+bytes > s.o.MaxBytes {
		return false
	}
	s.plan.names, s.plan.bytes = s.plan.names+names, s.plan.bytes+bytes
	return true
}
