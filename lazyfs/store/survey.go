package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// summary is what a survey found of a directory and all below it.
type summary struct {
	equal bool // the target's own is the same: names, attributes but times, contents
	names int
	bytes int64 // allocated
	more  bool  // there is so much that it was not looked at to the end
	why   string
	same  map[string]bool     // files in it that are equal, each by itself
	loose int                 // names in it of what is neither such a file nor a directory
	heavy int64               // bytes of these
	dirs  map[string]*summary // directories in it
}

// small says that a directory may come only because of where it is.
func (s *Store) small(m *summary) bool {
	return !m.more && m.names <= s.o.MaxNames && m.bytes <= s.o.MaxBytes
}

// skip is the directory of lazymig's own records, of this host. What the source has there is the same for it.
func (s *Store) skip() string { return filepath.Dir(s.o.Dir) }

// own is where the target's own file of a path is.
func (s *Store) own(p string) string { return filepath.Join(s.o.Own, p) }

const (
	surveyNames = 2_000_000 // of one survey: memory
	surveyors   = 8
)

// survey compares a directory of the source with the target's own of the same path. What differs in names or attributes is not read. Nothing but
// hashes crosses the network.
type survey struct {
	s     *Store
	node  uint64
	path  string
	base  string // of the target
	slots chan struct{}

	mu    sync.Mutex
	names int
	err   error
}

// missing is a tree that the target has not got: it can only be moved, so how much too much it is need not be known. Guarded by survey.mu.
type missing struct {
	names int
	bytes int64
}

func (s *Store) surveyTree(ctx context.Context, node uint64, p string) (*summary, error) {
	v := &survey{s: s, node: node, path: p, base: s.own(p), slots: make(chan struct{}, surveyors)}
	m := v.dir(ctx, "", nil)
	v.mu.Lock()
	defer v.mu.Unlock()
	return m, v.err
}

// stop ends a survey: with an error, or because there is too much.
func (v *survey) stop(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err == nil {
		v.err = err
	}
}

// count adds what was found, and says whether to go on.
func (v *survey) count(names int, bytes int64, in *missing) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.names += names
	if v.err != nil || v.names > surveyNames {
		return false
	}
	if in == nil {
		return true
	}
	in.names += names
	in.bytes += bytes
	return in.names <= v.s.o.MaxNames && in.bytes <= v.s.o.MaxBytes
}

// dir looks at one directory, which is part of in if that is not nil.
func (v *survey) dir(ctx context.Context, rel string, in *missing) *summary {
	m := &summary{equal: true, same: map[string]bool{}, dirs: map[string]*summary{}}
	differs := func(format string, args ...any) {
		if m.equal {
			m.equal, m.why = false, fmt.Sprintf(format, args...)
		}
	}
	dir, err := os.OpenFile(filepath.Join(v.base, rel), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME, 0)
	ours := err == nil
	if ours {
		defer dir.Close()
	} else {
		differs("the target has no such directory")
		if in == nil {
			in = &missing{}
		}
	}
	if filepath.Join(v.base, rel) == v.s.skip() || v.s.stays(path.Join(v.path, rel)) { // each host's own; nothing of it comes
		return m
	}
	theirs, err := v.scan(ctx, rel, false)
	if isGone(err) { // removed meanwhile
		m.equal = false
		return m
	}
	if errors.Is(err, unix.EACCES) { // a window into the source's kernel
		differs("what is in it is not served")
		return m
	}
	if err != nil {
		v.stop(fmt.Errorf("compare %s: %w", path.Join(v.base, rel), err))
		return m
	}
	var local map[string]wire.FileScanned
	if ours {
		if local, err = readOurs(dir, nil); err != nil {
			v.stop(fmt.Errorf("compare %s: %w", path.Join(v.base, rel), err))
			return m
		}
		if skip := v.s.skip(); path.Dir(skip) == filepath.Join(v.base, rel) {
			theirs = slices.DeleteFunc(theirs, func(x wire.FileScanned) bool { return x.Name == path.Base(skip) })
			delete(local, path.Base(skip))
		}
		if len(local) != len(theirs) {
			differs("%d names, %d on the target", len(theirs), len(local))
		}
	}
	bytes := int64(0)
	hash := map[string]bool{}
	for _, x := range theirs {
		bytes += int64(x.Attr.Blocks) * 512
		l, ok := local[x.Name]
		if !ok || !alike(&x, &l) {
			differs("%q is not the same", x.Name)
		} else if x.Attr.Mode&unix.S_IFMT == unix.S_IFREG {
			hash[x.Name] = true
		}
	}
	m.names, m.bytes = len(theirs), bytes
	if !v.count(len(theirs), bytes, in) {
		m.equal, m.more = false, true
		return m
	}
	if len(hash) > 0 {
		v.contents(ctx, rel, dir, hash, m, differs)
	}
	for _, x := range theirs {
		if x.Attr.Mode&unix.S_IFMT != unix.S_IFDIR && !m.same[x.Name] {
			m.loose++
			m.heavy += int64(x.Attr.Blocks) * 512
		}
	}
	v.below(ctx, rel, theirs, in, m)
	for name, d := range m.dirs {
		if !d.equal {
			differs("in %q: %s", name, d.why)
		}
		m.names, m.bytes, m.more = m.names+d.names, m.bytes+d.bytes, m.more || d.more
	}
	return m
}

// below looks into all directories in one, in goroutines of their own while there are slots.
func (v *survey) below(ctx context.Context, rel string, theirs []wire.FileScanned, in *missing, m *summary) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, x := range theirs {
		if x.Attr.Mode&unix.S_IFMT != unix.S_IFDIR || ctx.Err() != nil {
			continue
		}
		one := func() {
			d := v.dir(ctx, path.Join(rel, x.Name), in)
			mu.Lock()
			defer mu.Unlock()
			m.dirs[x.Name] = d
		}
		select {
		case v.slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-v.slots }()
				one()
			})
		default:
			one()
		}
	}
	wg.Wait()
}

// contents compares those files of a directory that are alike so far.
func (v *survey) contents(ctx context.Context, rel string, dir *os.File, names map[string]bool, m *summary, differs func(string, ...any)) {
	theirs, err := v.scan(ctx, rel, true)
	if err == nil {
		var local map[string]wire.FileScanned
		v.s.hashing <- struct{}{}
		local, err = readOurs(dir, names)
		<-v.s.hashing
		if err == nil {
			for _, x := range theirs {
				if l, ok := local[x.Name]; ok && names[x.Name] && alike(&x, &l) {
					m.same[x.Name] = true
					delete(names, x.Name)
				}
			}
			for name := range names {
				differs("%q holds something else", name)
			}
			return
		}
	}
	if !isGone(err) {
		v.stop(fmt.Errorf("compare %s: %w", path.Join(v.base, rel), err))
	}
	m.equal = false
}

func (v *survey) scan(ctx context.Context, rel string, contents bool) (all []wire.FileScanned, err error) {
	after := ""
	for {
		list, more, err := v.s.o.Remote.Scan(ctx, v.node, rel, after, contents)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
		if !more {
			return all, nil
		}
		if len(list) == 0 || list[len(list)-1].Name <= after {
			return nil, fmt.Errorf("list of %q does not go on behind %q: %w", rel, after, unix.EIO)
		}
		after = list[len(list)-1].Name
		if len(all) > surveyNames {
			return nil, fmt.Errorf("%q has more than %d names: %w", rel, surveyNames, unix.E2BIG)
		}
	}
}

// readOurs is what Scan tells, of a directory of the target's own; contents of these names only.
func readOurs(dir *os.File, contents map[string]bool) (map[string]wire.FileScanned, error) {
	if _, err := dir.Seek(0, 0); err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := make(map[string]wire.FileScanned, len(names))
	for _, name := range names {
		if contents != nil && !contents[name] {
			continue
		}
		x, err := describeOurs(int(dir.Fd()), name, contents[name])
		if isGone(err) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		all[name] = x
	}
	return all, nil
}

func describeOurs(dir int, name string, contents bool) (x wire.FileScanned, err error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return x, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return x, err
	}
	x.Name = name
	x.Attr.Mode, x.Attr.UID, x.Attr.GID, x.Attr.Rdev, x.Attr.Size = st.Mode, st.Uid, st.Gid, uint32(st.Rdev), uint64(st.Size)
	x.Sum, err = remotefs.Describe(fd, st.Mode, contents)
	return x, err
}

// alike says that two files are the same as far as a program cares where it runs: times do not count.
func alike(a, b *wire.FileScanned) bool {
	if a.Attr.Mode != b.Attr.Mode || a.Attr.UID != b.Attr.UID || a.Attr.GID != b.Attr.GID || a.Attr.Rdev != b.Attr.Rdev || a.Sum != b.Sum {
		return false
	}
	return a.Attr.Mode&unix.S_IFMT != unix.S_IFREG || a.Attr.Size == b.Attr.Size
}

// surveyed is the survey of a directory, if there is one; else it is asked for, and a later round decides.
func (s *Store) surveyed(ctx context.Context, o *object, p string) (*summary, error) {
	if o.survey != nil {
		return o.survey, nil
	}
	if s.final.Load() { // what was made just now; what is large stays undecided
		if _, err := os.Lstat(s.own(p)); err != nil {
			m, err := s.surveyTree(ctx, o.node, p)
			if err == nil {
				o.survey = m
			}
			return m, err
		}
	}
	if !slices.Contains(s.plan.ask, o) {
		s.plan.ask = append(s.plan.ask, o)
		o.asked = p
		select {
		case s.surveying <- struct{}{}:
		default:
		}
	}
	return nil, nil
}

// survey makes the surveys that rounds ask for, one after the other.
func (s *Store) survey() {
	for {
		select {
		case <-s.surveying:
		case <-s.ctx.Done():
			return
		}
		for s.ctx.Err() == nil {
			s.pass.Lock()
			var o *object
			if len(s.plan.ask) > 0 {
				o = s.plan.ask[0]
			}
			s.pass.Unlock()
			if o == nil {
				break
			}
			m, err := s.surveyTree(s.ctx, o.node, o.asked)
			s.pass.Lock()
			if err == nil {
				o.survey = m
			} else if s.ctx.Err() == nil {
				s.o.Log.Warn("a directory could not be compared", "path", o.asked, "err", err)
				o.survey = &summary{more: true, why: err.Error()}
			}
			s.plan.ask = s.plan.ask[1:] // others are only added behind
			s.plan.fresh = true
			s.pass.Unlock()
			s.wakeUp()
		}
	}
}
