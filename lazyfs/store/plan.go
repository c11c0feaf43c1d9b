package store

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"

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

type goalKind int

const (
	goalOpen    goalKind = iota // a node that the tree has opened
	goalChanged                 // one that it has changed
	goalWritten                 // one that it has open for writing: the directory comes along
	goalPath                    // a path that is used
	goalWhole                   // a path whose tree comes
	goalLocal                   // a path that is the target's own
)

// goal is one thing that the plan has to have.
type goal struct {
	kind goalKind
	node uint64
	path string
	why  string
}

func (w *Want) goals() []goal {
	var g []goal
	for _, p := range w.Local { // first: nothing below them needs a look
		g = append(g, goal{kind: goalLocal, path: path.Clean("/" + p)})
	}
	for _, p := range w.With {
		g = append(g, goal{kind: goalWhole, path: path.Clean("/" + p), why: "is to come along"})
	}
	for _, p := range w.Cwd {
		g = append(g, goal{kind: goalWhole, path: path.Clean("/" + p), why: "is a working directory"})
	}
	for _, p := range w.Exe {
		g = append(g, goal{kind: goalPath, path: path.Clean("/" + p)}, goal{kind: goalWhole, path: path.Dir(path.Clean("/" + p)), why: "holds the program"})
	}
	return g
}

// kernelDirs are the target's, mounted by who builds the root.
var kernelDirs = map[string]bool{"proc": true, "sys": true, "dev": true}

// shared are directories that are never moved whole because something in them is used: they hold what belongs to everybody.
var shared = map[string]bool{
	"/": true, "/usr": true, "/etc": true, "/bin": true, "/sbin": true, "/lib": true, "/lib64": true, "/lib32": true, "/libx32": true, "/boot": true,
	"/var": true, "/home": true, "/opt": true, "/mnt": true, "/media": true, "/usr/bin": true, "/usr/sbin": true, "/usr/lib": true, "/usr/lib64": true,
	"/usr/libexec": true, "/usr/share": true, "/usr/local": true, "/usr/local/bin": true, "/usr/local/sbin": true, "/usr/local/lib": true,
	"/var/lib": true, "/var/cache": true, "/usr/lib/x86_64-linux-gnu": true,
}

// smallFile is the size up to which files come that lie beside others that are needed.
const smallFile = 1 << 20

// plan is what has been decided. Guarded by Store.pass.
type plan struct {
	changed map[*object]struct{} // directories whose copies are to get other names
	bad     map[string]string    // path → why it can't be as it is wanted
}

func (p *plan) init() { p.changed, p.bad = map[*object]struct{}{}, map[string]string{} }

// decide works off the goals. With pass.
func (s *Store) decide(ctx context.Context) error {
	if s.root.listing == nil {
		if err := s.list(ctx, s.root); err != nil {
			return err
		}
		s.plan.changed[s.root] = struct{}{}
		for name, x := range s.root.listing {
			if kernelDirs[name] && x.isDir() {
				x.how = howBind
			}
		}
	}
	for {
		s.mu.Lock()
		if len(s.goals) == 0 {
			s.mu.Unlock()
			return nil
		}
		g := s.goals[0]
		s.mu.Unlock()
		if err := s.reach(ctx, g); err != nil {
			return err
		}
		s.mu.Lock()
		s.goals = s.goals[1:] // others are only added behind
		s.mu.Unlock()
	}
}

// reach decides what one goal needs.
func (s *Store) reach(ctx context.Context, g goal) error {
	p := g.path
	if g.kind <= goalWritten {
		if s.comesAnyway(g.node) {
			return nil
		}
		var err error
		p, err = s.o.Remote.Path(ctx, g.node)
		s.mu.Lock()
		delete(s.strange, g.node)
		s.mu.Unlock()
		if isGone(err) {
			return s.reachNameless(ctx, g.node)
		} else if err != nil {
			return fmt.Errorf("find path of node %d: %w", g.node, err)
		}
	}
	if g.kind == goalLocal {
		return s.reachLocal(ctx, p)
	}
	up, o, at, err := s.walk(ctx, p)
	if err != nil || at != "" {
		if isGone(err) && g.kind <= goalWritten { // renamed or removed meanwhile: where it went is another goal
			return s.reachNameless(ctx, g.node)
		} else if isGone(err) {
			return nil // the tree does not find it either
		}
		if err == nil && at != "" {
			return s.below(ctx, g, p)
		}
		return err
	}
	s.need(up, o)
	switch {
	case g.kind == goalWhole && o.isDir():
		s.whole(p, up, o)
	case g.kind == goalChanged || g.kind == goalWritten:
		if !o.isDir() {
			p, o = path.Dir(p), up
		}
		if o != nil {
			s.whole(p, nil, o)
		}
	case g.kind == goalOpen && up != nil:
		s.plan.changed[up] = struct{}{}
	}
	return nil
}

// comesAnyway says that a node and all beside it is moved, wherever it is.
func (s *Store) comesAnyway(node uint64) bool {
	s.mu.Lock()
	o := s.byNode[node]
	s.mu.Unlock()
	if o == nil || len(o.names) == 0 {
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
		o.how, o.relist = howExpand, o.listing == nil
		s.dirty[o] = struct{}{}
	}
	if up != nil {
		s.plan.changed[up] = struct{}{}
	}
	if o.isDir() {
		s.plan.changed[o] = struct{}{}
	}
}

// whole lets a directory come with all that is in it.
func (s *Store) whole(p string, up, o *object) {
	if shared[p] || o.how == howMove || o.how == howBind {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o.how, o.relist = howMove, true
	s.dirty[o] = struct{}{}
	s.plan.changed[o] = struct{}{}
	if up != nil {
		s.plan.changed[up] = struct{}{}
	}
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
	s.mu.Lock()
	for node, x := range s.opens {
		switch o := s.byNode[node]; {
		case x.bound, o != nil && o.in:
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

// walk goes down to a path, lists what it comes through and takes it into the store. at: there the target's own begins.
func (s *Store) walk(ctx context.Context, p string) (up, o *object, at string, err error) {
	o = s.root
	done := "/"
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" {
			break
		}
		if o.how == howBind {
			return nil, nil, done, nil
		}
		if !o.isDir() {
			return nil, nil, "", fmt.Errorf("%s is no directory: %w", done, unix.ENOENT)
		}
		s.need(up, o)
		s.mu.Lock()
		stale := o.listing == nil || o.relist || o.listing[name] == nil
		s.mu.Unlock()
		if stale {
			if err := s.list(ctx, o); err != nil {
				return nil, nil, "", err
			}
			s.plan.changed[o] = struct{}{}
		}
		x := o.listing[name]
		if x == nil {
			return nil, nil, "", fmt.Errorf("%s: %w", p, unix.ENOENT)
		}
		up, o = o, x
		done = path.Join(done, name)
	}
	if o.how == howBind {
		return nil, nil, done, nil
	}
	return up, o, "", nil
}

// reachLocal lets a directory of the target's own stand at a path.
func (s *Store) reachLocal(ctx context.Context, p string) error {
	up, o, at, err := s.walk(ctx, path.Dir(p))
	switch {
	case at != "":
		return nil // in another one
	case isGone(err):
		return nil // the tree does not find it either
	case err != nil:
		return err
	}
	s.need(up, o)
	if o.listing == nil {
		if err := s.list(ctx, o); err != nil {
			return err
		}
	}
	x := o.listing[path.Base(p)]
	switch st, err := os.Stat(p); {
	case x == nil || !x.isDir() && x.typ == unix.S_IFLNK:
		return nil
	case err != nil || !st.IsDir() || !x.isDir():
		s.plan.bad[p] = "is declared to be local, but is not a directory on both hosts"
		return nil
	case p == "/":
		s.plan.bad[p] = "the root itself can't be declared to be local"
		return nil
	}
	if x.how == howMove || x.how == howExpand {
		s.plan.bad[p] = "is declared to be local, but something in it is used by the tree and must come"
		return nil
	}
	x.how, x.from = howBind, p
	s.plan.changed[o] = struct{}{}
	return nil
}

// below is a goal in a directory of the target's own: what is open must be the same there, and nothing may have been changed.
func (s *Store) below(ctx context.Context, g goal, p string) error {
	s.mu.Lock()
	if x := s.opens[g.node]; x != nil {
		x.bound = true
	}
	s.mu.Unlock()
	for d := range kernelDirs {
		if p == "/"+d || strings.HasPrefix(p, "/"+d+"/") {
			return nil
		}
	}
	switch g.kind {
	case goalChanged, goalWritten:
		s.plan.bad[p] = "is written by the tree, but lies in a directory that is the target's own"
		return nil
	case goalWhole:
		if g.why == "is to come along" {
			s.plan.bad[p] = g.why + ", but lies in a directory that is the target's own"
		}
		return nil
	case goalPath:
		return nil
	}
	a, err := s.o.Remote.GetAttr(ctx, g.node)
	if isGone(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look at %s: %w", p, err)
	}
	same, err := s.sameAsOurs(ctx, g.node, p, a.Mode&unix.S_IFMT, int64(a.Size))
	if isGone(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("compare %s: %w", p, err)
	}
	if !same {
		s.plan.bad[p] = "is in use, and the target's own is another"
		return nil
	}
	s.bound[a.Ino] = p
	return nil
}

// Undecided lists what keeps the files from being the target's.
func (s *Store) undecided() []Undecided {
	var u []Undecided
	for p, why := range s.plan.bad {
		u = append(u, Undecided{p, why})
	}
	var visit func(o *object, p string)
	visit = func(o *object, p string) {
		for name, x := range o.listing {
			q := path.Join(p, name)
			switch {
			case x.isDir() && x.how == howNone:
				u = append(u, Undecided{q, "nobody has said whether it shall come (--with) or is the target's own (--local)"})
			case x.isDir() && x.how == howExpand:
				visit(x, q)
			case left(x):
				u = append(u, Undecided{q, fmt.Sprintf("is a file of %d bytes that is not used now", x.attr.Size)})
			}
		}
	}
	visit(s.root, "/")
	return u
}

// left says that a file beside others that are needed is too large to come unasked.
func left(x *object) bool { return x.isReg() && !x.needed && x.attr.Size > smallFile }

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
			case x.isDir() && x.how == howExpand:
				visit(x, q)
			}
		}
	}
	visit(s.root, "/")
	return b
}
