package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Settled is what Settle has found.
type Settled struct {
	Plan      Plan        `json:"plan"`
	Undecided []Undecided `json:"undecided,omitempty"`
	Files     int         `json:"files"` // copies, of any kind
	Bytes     int64       `json:"bytes"` // that were copied for it, from the beginning
}

const finalRounds = 6

// Settle brings everything up to date while the tree is stopped, and proves it: then the copies are the files. If it fails, or something is
// undecided, the source is still the owner of all, and the tree may go on; Settle may be called again. Else nothing is copied any more before
// the next Move: the tree may live on the copies already, whoever has died since.
func (s *Store) Settle(ctx context.Context) (*Settled, error) {
	s.mu.Lock()
	s.settling++
	if s.yield != nil {
		s.yield()
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.settling--
		s.mu.Unlock()
	}()
	s.pass.Lock()
	defer s.pass.Unlock()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("settle files: %w", context.Cause(ctx))
	}
	s.final.Store(true)
	defer s.final.Store(false)
	if !s.started {
		return nil, errors.New("settle files: nothing has been said about what shall come")
	}
	for i := 0; ; i++ {
		if err := s.round(ctx); err != nil {
			return nil, fmt.Errorf("settle files: %w", err)
		}
		if err := s.compareStamps(ctx, true); err != nil {
			return nil, fmt.Errorf("settle files: %w", err)
		}
		if !s.restless() {
			break
		}
		if i == finalRounds {
			return nil, fmt.Errorf("settle files: somebody else on the source writes while the tree is stopped: %s", s.restlessNames())
		}
	}
	if s.asked.IsZero() || len(s.outside) > 0 {
		if err := s.findWriters(ctx); err != nil {
			return nil, fmt.Errorf("settle files: %w", err)
		}
	}
	if s.o.Locals != nil {
		var err error
		if s.locals, err = s.o.Locals(filepath.Join(s.o.Dir, "root", hiddenDir)); err != nil {
			return nil, fmt.Errorf("settle files of the target's own: %w", err)
		}
	}
	if err := s.sync(ctx); err != nil {
		return nil, fmt.Errorf("settle files: %w", err)
	}
	s.byIno = map[uint64]*object{}
	s.mu.Lock()
	for _, o := range s.byNode {
		if o.in {
			s.byIno[o.ino] = o
		}
	}
	s.mu.Unlock()
	r := &Settled{
		Plan:      Plan{Root: filepath.Join(s.o.Dir, "root"), Binds: s.binds()},
		Undecided: s.undecided(), Files: len(s.byIno), Bytes: s.copied.Load(),
	}
	slices.SortFunc(r.Plan.Binds, func(a, b Bind) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(r.Undecided, func(a, b Undecided) int { return strings.Compare(a.Path, b.Path) })
	s.rests = len(r.Undecided) == 0
	return r, nil
}

// Local tells where, below the root, the file is that the tree knows by this inode number. After Settle.
func (s *Store) Local(ino uint64) (string, bool) {
	s.pass.Lock()
	defer s.pass.Unlock()
	if name, ok := s.locals[ino]; ok {
		return "/" + hiddenDir + "/" + name, true
	}
	o := s.byIno[ino]
	if p, ok := s.bound[ino]; ok && (o == nil || len(o.names) == 0 || o.declared) {
		return p, true
	}
	if o == nil || o.how == howBind {
		return "", false
	}
	p := s.path(o)
	return p, p != ""
}

// restless says whether something is left to be done.
func (s *Store) restless() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.goals) > 0 {
		return true
	}
	for o := range s.dirty {
		if o.in && o.dirtyLocked() && o.failed == "" {
			return true
		}
	}
	return false
}

func (s *Store) restlessNames() string {
	var list []*object
	s.mu.Lock()
	for o := range s.dirty {
		if o.in && o.dirtyLocked() {
			list = append(list, o)
		}
	}
	s.mu.Unlock()
	var names []string
	for _, o := range list {
		if names = append(names, s.path(o)); len(names) == 5 {
			break
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// rest is what the background does when nothing else is to be done.
func (s *Store) rest(ctx context.Context) error {
	if err := s.compareStamps(ctx, false); err != nil {
		return err
	}
	if time.Since(s.asked) > writersTime {
		if err := s.findWriters(ctx); err != nil {
			return err
		}
	}
	return nil
}

// compareStamps looks at all files on the source at once: who has another time than when it was copied, and was not changed by the tree,
// was changed by somebody else, and is copied again. While the tree runs, its own change may be seen here before it is told of, so one look
// is not enough then.
func (s *Store) compareStamps(ctx context.Context, stopped bool) error {
	var list []*object
	var nodes []uint64
	s.mu.Lock()
	for _, o := range s.byNode {
		if o.in && o.how != howBind && !o.own && !o.dirtyLocked() {
			list, nodes = append(list, o), append(nodes, o.node)
		}
	}
	s.mu.Unlock()
	stamps, err := s.o.Remote.Stamps(ctx, nodes)
	if err != nil {
		return fmt.Errorf("look for changes by others: %w", err)
	}
	for i, o := range list {
		a := &stamps[i].Attr
		if a.Ino == 0 { // forgotten by the server: it has another node now, or no name
			continue
		}
		s.mu.Lock()
		switch {
		case o.own || o.dirtyLocked(): // the tree, meanwhile
		case o.stamped && !changed(&o.attr, a):
			o.suspect = false
		case !stopped && !o.suspect:
			o.suspect = true
		default:
			o.suspect, o.look, o.bare, o.right = false, true, false, false
			s.dirty[o] = struct{}{}
			foreign := o.stamped && (o.attr.Mtime != a.Mtime || o.attr.Size != a.Size && o.isReg())
			switch {
			case o.isReg() && foreign:
				o.data.add(0, noEnd)
			case o.isReg():
				o.check.add(0, noEnd)
			case o.isDir():
				o.relist = true
			}
			if foreign {
				s.foreign[s.path(o)]++
				s.o.Log.Warn("somebody else has changed a file on the source; it is copied again", "path", s.path(o))
			}
		}
		s.mu.Unlock()
	}
	return nil
}

// writersTime is how often it is looked who else can write the files: the source reads its whole /proc for that.
const writersTime = 10 * time.Second

// findWriters asks who on the source can write what is copied. A change by one of them would be seen, but one that is made just after the stop would
// be lost, and two that work together on a file no longer would.
func (s *Store) findWriters(ctx context.Context) error {
	byNode := map[uint64]*object{}
	var nodes []uint64
	s.mu.Lock()
	for _, o := range s.byNode {
		if o.in && o.isReg() && !o.declared {
			byNode[o.node] = o
			nodes = append(nodes, o.node)
		}
	}
	s.mu.Unlock()
	found, err := s.o.Remote.Writers(ctx, nodes)
	if err != nil {
		return fmt.Errorf("look who else writes: %w", err)
	}
	s.outside, s.asked = map[string]string{}, time.Now()
	for node, who := range found {
		if o := byNode[node]; o != nil {
			s.outside[s.path(o)] = who
		}
	}
	return nil
}

const syncOne = 64 // files that are brought to the disk one by one; more: the whole file system

// sync brings copies to the disk while the tree is stopped. With pass.
func (s *Store) sync(ctx context.Context) error {
	s.mu.Lock()
	list := slices.Collect(maps.Keys(s.touched))
	s.mu.Unlock()
	if len(list) > syncOne {
		return s.syncAll()
	}
	if err := s.each(ctx, list, s.syncOne); err != nil { // at once: the file system writes its journal for all of them together
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.touched)
	return nil
}

// syncAll brings all copies to the disk. The background does it without pass: it can take long where others write to the same disk.
func (s *Store) syncAll() error {
	s.mu.Lock()
	list := maps.Clone(s.touched)
	s.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	d, err := os.Open(filepath.Join(s.o.Dir, "root"))
	if err != nil {
		return fmt.Errorf("bring copies to the disk: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("bring copies to the disk: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for o, n := range list {
		if s.touched[o] == n { // not changed since
			delete(s.touched, o)
		}
	}
	return nil
}

func (s *Store) syncOne(_ context.Context, o *object) error {
	if !o.isReg() && !o.isDir() {
		return nil // with its directory
	}
	dir, name := o.fd, "."
	if !o.isDir() {
		var err error
		if dir, name, err = s.where(o); err != nil {
			return err
		}
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring copy of %s to the disk: %w", s.path(o), err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Fsync(fd); err != nil {
		return fmt.Errorf("bring copy of %s to the disk: %w", s.path(o), err)
	}
	return nil
}

// Done is told when the tree lives on the copies: hidden names go, so that an unlinked file is one again, and nothing is kept at the source.
func (s *Store) Done() error {
	if err := markDone(s.o.Dir); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	return Finish(s.o.Dir)
}

// Finish is Done where the process that had the store is gone.
func Finish(dir string) error {
	if err := markDone(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, "root", hiddenDir)); err != nil {
		return fmt.Errorf("finish store: %w", err)
	}
	return nil
}

func markDone(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, doneFile), nil, 0o600); err != nil {
		return fmt.Errorf("finish store: %w", err)
	}
	return nil
}
