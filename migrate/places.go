package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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

// With --in-place what --with names goes to its own path on the target, whole, by one rename while the tree is stopped: the copies are complete, compared and on the
// disk by then, so there is never half a file. The new root has them as it has directories of the target's own, by a bind. What was at the path before is exchanged
// with the copy, and removed when the tree runs on it. What has been done stands in a file beside the record before it is done, so that whoever comes
// next, this agent or another, takes it back if the switch has failed, or finishes it.

// placesName is that file.
const placesName = "places"

// placed is one path.
type placed struct {
	Path string   `json:"path"`
	Made []string `json:"made,omitempty"` // directories above it that were missing, from the top
	Had  bool     `json:"had,omitempty"`  // there was something, which is where the copy was
	Dev  uint64   `json:"dev"`            // of the copy
	Ino  uint64   `json:"ino"`
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
	found, err := t.fuse.storeDiffers(ctx, tops(t.msg.With), maxReasons+1)
	for _, u := range found {
		list = append(list, u.Path+" "+u.Reason)
	}
	if len(list) > maxReasons {
		list[maxReasons] = "and more"
	}
	return list, err
}

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
			return "can't be put in its place: it is on another file system than the agent's state directory, and files are put there by rename (agent --state-dir)"
		}
		return ""
	}
}

// checkConflicts is the source's part.
func checkConflicts(m conflictsMsg) error {
	var bad []preflight.Finding
	for _, c := range m.Conflicts {
		bad = append(bad, preflight.Finding{Code: "in-place", Level: preflight.Refuse, What: c, Do: "what differs is replaced with --overwrite; without --in-place nothing of the target's is touched"})
	}
	return preflight.Refusals(bad)
}

func (t *Target) writePlaces(all []placed) error {
	if err := writeState(filepath.Join(t.rec.Dir, placesName), all); err != nil {
		return fmt.Errorf("write where files are put: %w", err)
	}
	return nil
}

func (t *Target) places() []string {
	if !t.msg.InPlace {
		return nil
	}
	return tops(t.msg.With)
}

func (t *Target) copyOf(p string) string { return filepath.Join(t.rec.Dir, "root", p) }

// place puts the copies in their places. The tree is stopped, and the store settled. After an error replace has to take it back.
func (t *Target) place(l *detach.Local) error {
	if !t.msg.InPlace {
		return nil
	}
	var all []placed
	for _, p := range tops(t.msg.With) {
		if i := slices.IndexFunc(l.Binds, func(b detach.Bind) bool { return strings.HasPrefix(b.Path+"/", p+"/") }); i >= 0 {
			return &detach.Stuck{Reasons: []string{fmt.Sprintf("%s can't be put in its place: %s in it is the target's own", p, l.Binds[i].Path)}}
		}
		var st unix.Stat_t
		if err := unix.Lstat(t.copyOf(p), &st); err != nil {
			continue // the source has none: nobody finds it
		}
		if why := t.placeable(p); why != "" {
			return &detach.Stuck{Reasons: []string{p + " " + why}}
		}
		x := placed{Path: p, Dev: st.Dev, Ino: st.Ino}
		_, err := os.Lstat(p)
		x.Had = err == nil
		for dir := filepath.Dir(p); !x.Had; dir = filepath.Dir(dir) {
			if _, err := os.Lstat(dir); err == nil || slices.ContainsFunc(all, func(y placed) bool { return slices.Contains(y.Made, dir) }) {
				break
			}
			x.Made = slices.Insert(x.Made, 0, dir)
		}
		all = append(all, x)
	}
	if err := t.writePlaces(all); err != nil {
		return err
	}
	for i := range all {
		if err := t.placeOne(&all[i]); err != nil {
			return fmt.Errorf("put %s in its place: %w", all[i].Path, err)
		}
		l.Binds = append(l.Binds, detach.Bind{Path: all[i].Path, Target: all[i].Path})
		park.At(t.log, "placed")
	}
	slices.SortFunc(l.Binds, func(a, b detach.Bind) int { return strings.Compare(a.Path, b.Path) })
	return nil
}

func (t *Target) placeOne(x *placed) error {
	from := t.copyOf(x.Path)
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
	if err := mountPoint(from, fi.IsDir()); err != nil {
		return err
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

func (t *Target) readPlaces() ([]placed, error) {
	var all []placed
	err := readState(filepath.Join(t.rec.Dir, placesName), &all)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return all, err
}

// takeBack is after a switch that has failed: the copies are in the store again, and what was at their places is there.
func (t *Target) takeBack() error {
	all, err := t.readPlaces()
	if err != nil {
		return err
	}
	for _, x := range slices.Backward(all) {
		if err := t.takeBackOne(&x); err != nil {
			return fmt.Errorf("take %s back from its place: %w", x.Path, err)
		}
	}
	return t.forgetPlaces()
}

func (t *Target) takeBackOne(x *placed) error {
	from := t.copyOf(x.Path)
	if x.here() {
		flags := uint(unix.RENAME_EXCHANGE)
		if !x.Had {
			_ = unix.Unlink(from) // the place to mount at, if that was made: one of both, and empty
			_ = unix.Rmdir(from)
			flags = unix.RENAME_NOREPLACE
		}
		if err := unix.Renameat2(unix.AT_FDCWD, x.Path, unix.AT_FDCWD, from, flags); err != nil {
			return err
		}
	}
	for _, dir := range slices.Backward(x.Made) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.log.Warn("a directory that was made stays", "path", dir, "err", err) // somebody has put something there
		}
	}
	return nil
}

// finishPlaces is when the tree lives there: what was there before goes. Not the place where it lies: the tree has its own mounted over that, and would lose it.
func (t *Target) finishPlaces() error {
	all, err := t.readPlaces()
	if err != nil {
		return err
	}
	for _, x := range all {
		if !x.Had || !x.here() {
			continue
		}
		if err := emptyOut(t.copyOf(x.Path)); err != nil {
			return fmt.Errorf("remove what was at %s: %w", x.Path, err)
		}
	}
	return t.forgetPlaces()
}

func emptyOut(dir string) error {
	ents, err := os.ReadDir(dir)
	if errors.Is(err, unix.ENOTDIR) {
		return nil // a file: it stays below the one that is used
	}
	for _, e := range ents {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

func (t *Target) forgetPlaces() error {
	if err := os.Remove(filepath.Join(t.rec.Dir, placesName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove where files were put: %w", err)
	}
	return nil
}
