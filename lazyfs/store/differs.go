package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// differ compares trees of the source with the target's own of the same paths, name by name. It changes nothing, so it may run before the tree is frozen.
type differ struct {
	v    survey // to list the source's
	most int
	list []Undecided
}

// Differs lists what the target has at these paths and below, and the source has not, or another; at most so many. A path that the target has not got is no
// difference.
func Differs(ctx context.Context, r Remote, own string, paths []string, most int) ([]Undecided, error) {
	s := &Store{o: Options{Own: own, Remote: r}}
	for _, p := range paths {
		d := &differ{v: survey{s: s, node: wire.FileRootNode, base: own}, most: most}
		if err := d.path(ctx, path.Clean(p)); err != nil {
			return nil, fmt.Errorf("compare %s: %w", p, err)
		}
		if len(d.list) > 0 {
			slices.SortFunc(d.list, func(a, b Undecided) int { return strings.Compare(a.Path, b.Path) })
			return d.list, nil
		}
	}
	return nil, nil
}

func (d *differ) note(p, format string, args ...any) {
	if len(d.list) < d.most {
		d.list = append(d.list, Undecided{p, fmt.Sprintf(format, args...)})
	}
}

// path compares one, by its entry in the directory above.
func (d *differ) path(ctx context.Context, p string) error {
	if _, err := os.Lstat(filepath.Join(d.v.base, p)); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	up, base := path.Dir(p), path.Base(p)
	theirs, err := d.v.scan(ctx, strings.Trim(up, "/"), false)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(theirs, func(x wire.FileScanned) bool { return x.Name == base })
	if i < 0 {
		return unix.ENOENT
	}
	return d.names(ctx, up, theirs[i:i+1], map[string]bool{base: true})
}

// names compares entries of a directory; only: just these of the target's; nil: all.
func (d *differ) names(ctx context.Context, p string, theirs []wire.FileScanned, only map[string]bool) error {
	dir, err := os.OpenFile(filepath.Join(d.v.base, p), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	ours, err := readOurs(dir, only)
	if err != nil {
		return err
	}
	var sums map[string][wire.FileSumSize]byte // of the source's contents
	for _, x := range theirs {
		q := path.Join(p, x.Name)
		l, ok := ours[x.Name]
		delete(ours, x.Name)
		kind := x.Attr.Mode & unix.S_IFMT
		switch {
		case !ok:
			continue
		case l.Attr.Mode&unix.S_IFMT != kind:
			d.note(q, "is of another kind on the target")
		case kind == unix.S_IFREG && l.Attr.Size != x.Attr.Size:
			d.note(q, "has %d bytes on the target, and %d here", l.Attr.Size, x.Attr.Size)
		case l.Attr.Mode != x.Attr.Mode || l.Attr.UID != x.Attr.UID || l.Attr.GID != x.Attr.GID:
			d.note(q, "is %o of %d:%d on the target, and %o of %d:%d here", l.Attr.Mode&0o7777, l.Attr.UID, l.Attr.GID, x.Attr.Mode&0o7777, x.Attr.UID, x.Attr.GID)
		case kind == unix.S_IFDIR:
			below, err := d.v.scan(ctx, strings.Trim(q, "/"), false)
			if err == nil {
				err = d.names(ctx, q, below, nil)
			}
			if err != nil {
				return err
			}
		default:
			if sums == nil {
				if sums, err = d.sums(ctx, p); err != nil {
					return err
				}
			}
			if l, err = describeOurs(int(dir.Fd()), x.Name, true); err != nil {
				return err
			}
			if l.Sum != sums[x.Name] {
				d.note(q, "is another on the target")
			}
		}
		if len(d.list) >= d.most {
			return nil
		}
	}
	for name := range ours {
		d.note(path.Join(p, name), "is on the target only")
	}
	return nil
}

func (d *differ) sums(ctx context.Context, p string) (map[string][wire.FileSumSize]byte, error) {
	list, err := d.v.scan(ctx, strings.Trim(p, "/"), true)
	m := make(map[string][wire.FileSumSize]byte, len(list))
	for _, x := range list {
		m[x.Name] = x.Sum
	}
	return m, err
}
