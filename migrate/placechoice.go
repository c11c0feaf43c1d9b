package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What is put in its place is chosen before the tree is stopped, and looked at once more while it stands still:
//
//	--with PATH             whole, in exchange for what the target has there
//	a directory in use      whole, if the target has none, or one that is the same
//	a file in use           if the target has none, with the topmost directory that is missing above it; or in exchange for another, with --overwrite
//
// What was found to differ before the freeze kept the tree where it was, unless --overwrite was said; what differs only now stays in the store, and so does what can't be
// put there, and is named.

// choice is one path that may be put in its place.
type choice struct {
	path  string // the unit
	use   string // what is used, in it or itself; empty: named by --with
	over  bool   // whatever is there
	seen  stamp  // what was there
	since int64  // when that was compared, in ns of the wall clock; 0: it was not
	temp  string // a copy beside it, on its file system
	copy  stamp  // what that was made of
}

// stamp tells one file from another, and from itself after a change.
type stamp struct {
	dev, ino    uint64
	size        int64
	ctime, mode int64
}

func stampOf(p string) (x stamp) {
	var st unix.Stat_t
	if unix.Lstat(p, &st) == nil {
		x = stamp{st.Dev, st.Ino, st.Size, st.Ctim.Nano(), int64(st.Mode)}
	}
	return x
}

// sameEntry ignores what a directory's own change is.
func (x stamp) sameEntry(y stamp) bool {
	if x.mode&unix.S_IFMT == unix.S_IFDIR {
		x.ctime, x.size, y.ctime, y.size = 0, 0, 0, 0
	}
	return x == y
}

// choices is what choosePlaces has come to.
type choices struct {
	list  []choice
	aside []string
}

func (c *choices) leave(p, format string, args ...any) {
	c.aside = append(c.aside, p+" "+fmt.Sprintf(format, args...))
}

// choosePlaces is before each stop of the tree. differs gives one difference of the target's own from the source's, in words; empty: there is none.
func (t *Target) choosePlaces(differs func(p string) (string, error)) error {
	t.choices = choices{}
	if !t.msg.InPlace {
		return nil
	}
	c := &t.choices
	for _, p := range tops(t.msg.With) {
		x := choice{path: p, over: t.msg.Overwrite, since: time.Now().UnixNano(), seen: stampOf(p)}
		if !x.over && x.seen != (stamp{}) {
			if why, err := differs(p); err != nil {
				return err
			} else if why != "" {
				c.leave(p, "is another on the target by now: %s", why)
				continue
			}
		}
		c.list = append(c.list, x)
	}
	for _, p := range t.msg.UsesDirs {
		if err := t.chooseDir(p, differs); err != nil {
			return err
		}
	}
	var temps []placed
	for _, p := range t.msg.UsesFiles {
		if err := t.chooseFile(p); err != nil {
			return err
		}
	}
	for i := range c.list {
		if x := &c.list[i]; x.temp != "" {
			temps = append(temps, placed{Path: x.path, Temp: x.temp})
		}
	}
	if len(temps) == 0 {
		return nil
	}
	if err := t.writePlaces(temps); err != nil { // whoever comes next takes them away
		return err
	}
	for i := range c.list {
		if x := &c.list[i]; x.temp != "" {
			if err := copyFile(t.copyOf(x.path), x.temp); err != nil {
				c.leave(x.path, "can't be put in its place: %v", err)
				x.temp, x.path = "", "" // what there is of the copy goes with the others
			}
		}
	}
	c.list = slices.DeleteFunc(c.list, func(x choice) bool { return x.path == "" })
	return nil
}

func (t *Target) differs(ctx context.Context, p string) (string, error) {
	found, err := t.fuse.storeDiffers(ctx, []string{p}, 1)
	if err != nil || len(found) == 0 {
		return "", err
	}
	return found[0].Path + " " + found[0].Reason, nil
}

// missingTop is the topmost of a path's directories that is not there, or it itself.
func missingTop(p string) string {
	at := "/"
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		at = filepath.Join(at, name)
		if _, err := os.Lstat(at); errors.Is(err, unix.ENOENT) {
			return at
		}
	}
	return p
}

func (t *Target) chooseDir(p string, differs func(p string) (string, error)) error {
	c := &t.choices
	x := choice{path: missingTop(p), use: p, since: time.Now().UnixNano(), seen: stampOf(p)}
	if why := t.placeable(p); why != "" {
		c.leave(p, "%s", why)
		return nil
	}
	if x.seen != (stamp{}) {
		if why, err := differs(p); err != nil {
			return err
		} else if why != "" {
			c.leave(p, "is another on the target, and a directory that --with does not name is not replaced: %s", why)
			return nil
		}
	}
	c.list = append(c.list, x)
	return nil
}

func (t *Target) chooseFile(p string) error {
	c, from := &t.choices, t.copyOf(p)
	x := choice{path: missingTop(p), use: p, over: t.msg.Overwrite, since: time.Now().UnixNano(), seen: stampOf(p)}
	if x.copy = stampOf(from); x.copy.mode&unix.S_IFMT != unix.S_IFREG || slices.ContainsFunc(c.list, func(y choice) bool { return y.use == "" && below(p, y.path) }) {
		return nil // it is in something of the target's own, has gone, or comes with another
	}
	if x.seen != (stamp{}) {
		if same, err := sameFile(from, p); err != nil || same {
			return err
		}
		if !x.over {
			c.leave(p, "is another on the target by now")
			return nil
		}
	}
	if why := t.placeable(p); why != "" {
		if !t.elsewhere(p) {
			c.leave(p, "%s", why)
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(from, &st) == nil && st.Nlink > 1 {
			c.leave(p, "can't be put in its place: it has other names, and is on another file system than the agent's state directory")
			return nil
		}
		x.path = p
		x.temp = filepath.Join(existing(path.Dir(p)), fmt.Sprintf(".lazymig-%s-%d", t.id.String()[:8], len(c.list)))
	}
	c.list = append(c.list, x)
	return nil
}

// below says whether p is dir or in it.
func below(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// existing is the lowest of a path's directories that is there.
func existing(p string) string {
	for p != "/" {
		if _, err := os.Lstat(p); err == nil {
			break
		}
		p = path.Dir(p)
	}
	return p
}

// sameFile compares contents, mode and owner.
func sameFile(a, b string) (bool, error) {
	var x, y unix.Stat_t
	if unix.Lstat(a, &x) != nil || unix.Lstat(b, &y) != nil || x.Mode != y.Mode || x.Size != y.Size || x.Uid != y.Uid || x.Gid != y.Gid {
		return false, nil
	}
	f, err := os.Open(a)
	if err != nil {
		return false, fmt.Errorf("compare: %w", err)
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return false, fmt.Errorf("compare: %w", err)
	}
	defer g.Close()
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(f, p)
		m, err2 := io.ReadFull(g, q)
		if !bytes.Equal(p[:n], q[:m]) {
			return false, nil
		}
		if err != nil || err2 != nil {
			for _, e := range []error{err, err2} {
				if e != nil && !errors.Is(e, io.EOF) && !errors.Is(e, io.ErrUnexpectedEOF) {
					return false, fmt.Errorf("compare: %w", e)
				}
			}
			return errors.Is(err, io.EOF) == errors.Is(err2, io.EOF), nil
		}
	}
}

// copyFile copies a file that nobody writes, with all that belongs to it, to a name that is new, and brings it to the disk.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(in.Fd()), &st); err != nil {
		return fmt.Errorf("look at %s: %w", from, err)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
	}()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	fd := int(out.Fd())
	if err := errors.Join(unix.Fchown(fd, int(st.Uid), int(st.Gid)), unix.Fchmod(fd, st.Mode&0o7777)); err != nil {
		return fmt.Errorf("copy owner and mode to %s: %w", to, err)
	}
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(int(in.Fd()), names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("list attributes of %s: %w", from, err)
	}
	v := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:max(n, 0)]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Fgetxattr(int(in.Fd()), name, v)
		if err == nil {
			err = unix.Fsetxattr(fd, name, v[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %s to %s: %w", name, to, err)
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("copy times to %s: %w", to, err)
	}
	return out.Sync()
}
