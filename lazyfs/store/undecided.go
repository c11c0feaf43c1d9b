package store

import (
	"cmp"
	"fmt"
	"path"
)

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
