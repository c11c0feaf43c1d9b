package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/restore/detach"
)

// With --in-place what the tree uses (uses.go) and what --with names goes to its own path on the target (placechoice.go says what), whole, by one rename while the tree is stopped:
// the copies are complete, compared and on the disk by then, so there is never half a file. The new root, which is the store's, has them as it has directories of the target's own, by
// a bind. What was at the path before is exchanged with the copy, and removed when the tree runs on it, unless it has changed since it was compared. What has been done stands in a file
// beside the record before it is done, so that whoever comes next, this agent or another, takes it back if the switch has failed, or finishes it.
//
// A file on another file system than the store is copied before the stop, beside its place, and that copy is renamed.

// placesName is that file.
const placesName = "places"

// placed is one path.
type placed struct {
	Path string   `json:"path"`
	Made []string `json:"made,omitempty"` // directories above it that were missing, from the top
	Had  bool     `json:"had,omitempty"`  // there was something, which is where the copy was
	Dev  uint64   `json:"dev"`            // of the copy
	Ino  uint64   `json:"ino"`

	Temp  string `json:"temp,omitempty"`  // the copy is this, not the store's
	Since int64  `json:"since,omitempty"` // what was there before was found to be the same after this, in ns; 0: it does not matter
}

// here says whether the copy is at its place.
func (x *placed) here() bool {
	var st unix.Stat_t
	return unix.Lstat(x.Path, &st) == nil && st.Dev == x.Dev && st.Ino == x.Ino
}

// tops are the paths that are in none of the others.
func tops(paths []string) []string {
	var all []string
	for _, p := range paths {
		all = append(all, filepath.Clean(p))
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(p string) bool {
		return slices.ContainsFunc(all, func(o string) bool { return strings.HasPrefix(p, strings.TrimSuffix(o, "/")+"/") })
	})
}

// conflictsMsg is the answer of a target to MsgPrepare that refuses: nothing has been touched.
type conflictsMsg struct {
	Conflicts []string `json:"conflicts,omitempty"`
}

func (m *conflictsMsg) check() error {
	if len(m.Conflicts) > maxReasons+1 {
		return fmt.Errorf("%d conflicts", len(m.Conflicts))
	}
	for i, c := range m.Conflicts {
		m.Conflicts[i] = trim(c)
	}
	return nil
}

// conflicts lists what keeps files from being put in their places, before anything is frozen.
func (t *Target) conflicts(ctx context.Context) ([]string, error) {
	if !t.msg.InPlace {
		return nil, nil
	}
	var list []string
	for _, p := range tops(t.msg.With) {
		if why := t.placeable(p); why != "" {
			list = append(list, p+" "+why)
		}
	}
	if len(list) > 0 || t.msg.Overwrite {
		return list, nil
	}
	dirs := slices.DeleteFunc(slices.Clone(t.msg.UsesDirs), func(p string) bool { return t.placeable(p) != "" })
	found, err := t.fuse.storeDiffers(ctx, tops(slices.Concat(t.msg.With, dirs)), maxReasons+1)
	if err == nil && len(found) == 0 {
		files := slices.DeleteFunc(slices.Clone(t.msg.UsesFiles), func(p string) bool { return t.placeable(p) != "" && !t.elsewhere(p) })
		found, err = t.fuse.storeFilesDiffer(ctx, files, maxReasons+1)
	}
	for _, u := range found {
		list = append(list, u.Path+" "+u.Reason)
	}
	if len(list) > maxReasons {
		list = append(list[:maxReasons], "and more")
	}
	return list, err
}

const otherFS = "another file system than the agent's state directory, and is put there by rename (agent --state-dir)"

// elsewhere says that a path is not placeable only because it is on another file system: a single file is copied there before.
func (t *Target) elsewhere(p string) bool { return strings.HasSuffix(t.placeable(p), otherFS) }

// placeable says why nothing can be put at a path; empty: it can.
func (t *Target) placeable(p string) string {
	if ofTarget(p) {
		return "can't be put in its place: it is the target's"
	}
	var state, st unix.Stat_t
	if err := unix.Stat(t.rec.Dir, &state); err != nil {
		return "can't be put in its place: " + err.Error()
	}
	if rel, err := filepath.Rel(p, t.rec.Dir); err == nil && !strings.HasPrefix(rel, "..") {
		return "can't be put in its place: the agent's state directory is in it"
	}
	for at := p; ; at = filepath.Dir(at) {
		fd, err := unix.Openat2(unix.AT_FDCWD, at, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
		if errors.Is(err, unix.ENOENT) && at != "/" {
			continue
		}
		if errors.Is(err, unix.ELOOP) {
			return "can't be put in its place: a symbolic link of the target leads there"
		}
		if err == nil {
			err = unix.Fstat(fd, &st)
			unix.Close(fd)
		}
		switch {
		case err != nil:
			return "can't be put in its place: " + err.Error()
		case st.Dev != state.Dev:
			return "can't be put in its place: it is on " + otherFS
		}
		return ""
	}
}

// checkConflicts is the source's part.
func checkConflicts(m conflictsMsg) error {
	var bad []preflight.Finding
	for _, c := range m.Conflicts {
		bad = append(bad, preflight.Finding{Code: "in-place", Level: preflight.Refuse, What: c, Do: "what differs is replaced with --overwrite, but for directories that --with does not name; what is declared by --local is not looked at; without --in-place nothing of the target's is touched"})
	}
	return preflight.Refusals(bad)
}

func (t *Target) writePlaces(all []placed) error {
	if err := writeState(filepath.Join(t.rec.Dir, placesName), all); err != nil {
		return fmt.Errorf("write where files are put: %w", err)
	}
	return nil
}

func (t *Target) copyOf(p string) string { return filepath.Join(t.rec.Dir, "root", p) }

// place puts the copies in their places, and says which are and which are not. The tree is stopped, and the store settled. After an error replace has to take it back.
func (t *Target) place(l *detach.Local) (places, aside []string, err error) {
	if !t.msg.InPlace {
		return nil, nil, nil
	}
	c := &t.choices
	aside = slices.Clone(c.aside)
	var all []placed
	slices.SortStableFunc(c.list, func(a, b choice) int { return strings.Compare(a.path, b.path) })
	for _, x := range c.list {
		switch y, why, err := t.ready(&x, l.Binds, all); {
		case err != nil:
			return nil, nil, err
		case why != "":
			aside = append(aside, cmp.Or(x.use, x.path)+" "+why)
		case y != nil:
			all = append(all, *y)
		}
	}
	if err := t.writePlaces(append(unused(c.list, all), all...)); err != nil {
		return nil, nil, err
	}
	for i := range all {
		if err := t.placeOne(&all[i]); err != nil {
			return nil, nil, fmt.Errorf("put %s in its place: %w", all[i].Path, err)
		}
		l.Binds = append(l.Binds, detach.Bind{Path: all[i].Path, Target: all[i].Path})
		places = append(places, all[i].Path)
		park.At(t.log, "placed")
	}
	slices.SortFunc(l.Binds, func(a, b detach.Bind) int { return strings.Compare(a.Path, b.Path) })
	return places, fewReasons(aside), nil
}

// unused are copies that were made before, and are not needed.
func unused(list []choice, all []placed) (left []placed) {
	for _, x := range list {
		if x.temp != "" && !slices.ContainsFunc(all, func(y placed) bool { return y.Temp == x.temp }) {
			left = append(left, placed{Path: x.path, Temp: x.temp})
		}
	}
	return left
}

func fewReasons(all []string) []string {
	if n := len(all); n > maxReasons {
		return append(slices.Clone(all[:maxReasons]), fmt.Sprintf("and %d more", n-maxReasons))
	}
	return all
}

// ready says what is to be done for a choice: nothing, if it is nothing that has come, or why it can't be.
func (t *Target) ready(x *choice, binds []detach.Bind, before []placed) (y *placed, why string, err error) {
	inside := func(dir string) (string, bool) {
		for _, b := range binds {
			if b.Path != dir && below(b.Path, dir) {
				return b.Path + " in it is the target's own", true
			}
		}
		for _, r := range t.msg.Remote {
			if below(r, dir) {
				return r + " in it stays at the source", true
			}
		}
		return "", false
	}
	p := x.path
	what, parts := inside(p)
	if parts && x.use != "" && x.use != p { // not all of the directory that is missing, then
		p = x.use
		what, parts = inside(p)
	}
	if slices.ContainsFunc(before, func(z placed) bool { return below(p, z.Path) }) || slices.ContainsFunc(binds, func(b detach.Bind) bool { return below(p, b.Path) }) {
		return nil, "", nil // it is there with another, or the target's own is used
	}
	var st unix.Stat_t
	if unix.Lstat(t.copyOf(p), &st) != nil {
		return nil, "", nil // the source has none: nobody finds it
	}
	if why = t.placeable(p); parts {
		why = "can't be put in its place: " + what
	}
	switch {
	case why != "" && x.use == "":
		return nil, "", &detach.Stuck{Reasons: []string{p + " " + why}}
	case why != "" && (parts || x.temp == ""):
		return nil, why, nil
	case !x.over && x.path == p && !stampOf(p).sameEntry(x.seen), p != x.path && !x.over && stampOf(p) != (stamp{}):
		return nil, "has changed on the target just now", nil
	case x.temp != "" && stampOf(t.copyOf(p)) != x.copy:
		return nil, "can't be put in its place: it is on another file system than the agent's state directory, and has just been written", nil
	}
	y = &placed{Path: p, Dev: st.Dev, Ino: st.Ino}
	if !x.over {
		y.Since = x.since
	}
	if x.temp != "" {
		if err := unix.Lstat(x.temp, &st); err != nil {
			return nil, "", fmt.Errorf("look at copy of %s: %w", p, err)
		}
		y.Temp, y.Dev, y.Ino = x.temp, st.Dev, st.Ino
	}
	_, err = os.Lstat(p)
	y.Had = err == nil
	for dir := filepath.Dir(p); !y.Had; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil || slices.ContainsFunc(before, func(z placed) bool { return slices.Contains(z.Made, dir) }) {
			break
		}
		y.Made = slices.Insert(y.Made, 0, dir)
	}
	return y, "", nil
}

// from is where the copy is before it is in its place.
func (t *Target) from(x *placed) string { return cmp.Or(x.Temp, t.copyOf(x.Path)) }

func (t *Target) placeOne(x *placed) error {
	from := t.from(x)
	for _, dir := range x.Made {
		fi, err := os.Lstat(t.copyOf(dir))
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := errors.Join(os.Lchown(dir, int(st.Uid), int(st.Gid)), unix.Chmod(dir, st.Mode&0o7777)); err != nil {
			return err
		}
	}
	if x.Had {
		if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, x.Path, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		return syncDirs(filepath.Dir(from), filepath.Dir(x.Path))
	}
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, x.Path, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	if x.Temp == "" {
		if err := mountPoint(from, fi.IsDir()); err != nil {
			return err
		}
	}
	dirs := []string{filepath.Dir(from), filepath.Dir(x.Path)}
	for _, dir := range x.Made {
		dirs = append(dirs, filepath.Dir(dir))
	}
	return syncDirs(dirs...)
}

// mountPoint makes what something can be mounted over.
func mountPoint(p string, dir bool) error {
	if dir {
		return os.Mkdir(p, 0o755)
	}
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}
