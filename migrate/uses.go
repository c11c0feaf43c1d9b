package migrate

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// With --in-place all that the tree uses goes to its own path, not only what --with names: files that it runs, has mapped or open, and the directories that it works in or has
// files open for writing in, whole, because a single file that is bound somewhere can be neither renamed nor removed. The source says while the tree runs which these are.

const (
	maxUses    = 2000      // files
	maxUsesLen = 512 << 10 // bytes of their paths: they go in one message
)

// uses lists them: directories, and files that lie in none of these. Not those that are to come along, to stay, or to be the target's anyway.
func (s *Source) uses() (dirs, files []string) {
	var pids []int
	for _, t := range s.rep.Tree.Tasks {
		pids = append(pids, t.PID)
	}
	root := fmt.Sprintf("/proc/%d/root", s.opt.PID)
	named := slices.Concat(s.opt.With, s.opt.Local, s.opt.Remote)
	in := func(p string, all []string) bool {
		return slices.ContainsFunc(all, func(d string) bool { return p == d || strings.HasPrefix(p, strings.TrimSuffix(path.Clean(d), "/")+"/") })
	}
	isKind := func(p string, kind uint32) bool {
		var st unix.Stat_t
		return unix.Lstat(filepath.Join(root, p), &st) == nil && st.Mode&unix.S_IFMT == kind
	}
	l := treeSeeds(pids, false)
	for p := range l.written {
		if d := path.Dir(p); isKind(p, unix.S_IFREG) && !ofTarget(d) {
			dirs = append(dirs, d)
		}
	}
	for _, pid := range pids {
		own, _ := os.Readlink(fmt.Sprintf("/proc/%d/root", pid))
		if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
			if p := inside(own, cwd); strings.HasPrefix(p, "/") && !ofTarget(p) && isKind(p, unix.S_IFDIR) {
				dirs = append(dirs, p)
			}
		}
	}
	dirs = slices.DeleteFunc(tops(dirs), func(d string) bool { return in(d, named) })
	length := 0
	for _, p := range slices.Sorted(maps.Keys(l.paths)) {
		if x := l.paths[p]; len(x.Flags) == 0 && !x.Data || ofTarget(p) || in(p, dirs) || in(p, named) || !isKind(p, unix.S_IFREG) {
			continue
		}
		if length += len(p) + 3; length > maxUsesLen || len(files) == maxUses {
			s.notice("the tree uses too many files to put all in their places: those from %s on go to the store", p)
			break
		}
		files = append(files, p)
	}
	return dirs[:min(len(dirs), maxPaths)], files
}
