package migrate

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// criuLooks are names that the capsule and CRIU look for besides the tree's own; some do not exist.
var criuLooks = []string{
	"/dev/shm", "/etc/criu/default.conf", "/etc/gnutls/config", "/etc/ld.so.preload", "/.criu/default.conf", "/proc", "/run/criu.kdat", "/sys",
	"/tmp", "/usr/lib/criu", "/usr/sbin/iptables", "/usr/sbin/ip6tables", "/usr/sbin/nft",
}

// seedList gathers the paths of a tree that its restore will ask for.
type seedList struct {
	paths   map[string]*remotefs.SeedPath
	written map[string]bool // the tree itself may write there, at any time
	deleted []string        // where files that are open had a name
}

// treeSeeds are the paths that /proc names of these processes. pages: also those parts of files that the restore reads for sure,
// because the tree has pages of its own in place of them.
func treeSeeds(pids []int, pages bool) *seedList {
	l := &seedList{paths: map[string]*remotefs.SeedPath{}, written: map[string]bool{}}
	for _, p := range criuLooks {
		l.paths[p] = &remotefs.SeedPath{Path: p}
	}
	l.paths["/"] = &remotefs.SeedPath{Path: "/", Flags: []uint32{unix.O_RDONLY, unix.O_RDONLY}} // CRIU opens it for itself, too
	for _, pid := range pids {
		proc := fmt.Sprintf("/proc/%d", pid)
		root, _ := os.Readlink(proc + "/root")
		for _, name := range []string{"exe", "cwd", "root"} {
			if _, p := l.link(root, proc+"/"+name); p != nil {
				p.Flags = append(p.Flags, unix.O_RDONLY)
			}
		}
		l.descriptors(root, proc)
		l.mappings(root, proc, pages)
	}
	return l
}

// at is the entry of a path, nil if it has none at the source: /proc, /sys and /dev are the target's, deleted files have no path.
func (l *seedList) at(p string) *remotefs.SeedPath {
	if !strings.HasPrefix(p, "/") || strings.HasSuffix(p, " (deleted)") {
		return nil
	}
	for _, own := range []string{"/proc", "/sys", "/dev"} {
		if (p == own || strings.HasPrefix(p, own+"/")) && p != "/dev/shm" && !strings.HasPrefix(p, "/dev/shm/") {
			return nil
		}
	}
	if l.paths[p] == nil {
		l.paths[p] = &remotefs.SeedPath{Path: p}
	}
	return l.paths[p]
}

// inside is a path as the tree sees it.
func inside(root, p string) string {
	if root == "/" {
		return p
	}
	p, ok := strings.CutPrefix(p, root)
	if !ok {
		return ""
	}
	return "/" + strings.TrimPrefix(p, "/")
}

func (l *seedList) link(root, link string) (string, *remotefs.SeedPath) {
	p, err := os.Readlink(link)
	if err != nil {
		return "", nil // it has ended; the freeze tells
	}
	p = inside(root, p)
	if was, ok := strings.CutSuffix(p, " (deleted)"); ok && strings.HasPrefix(was, "/") {
		l.deleted = append(l.deleted, was)
	}
	return p, l.at(p)
}

func (l *seedList) descriptors(root, proc string) {
	ents, _ := os.ReadDir(proc + "/fd")
	for _, e := range ents {
		p, s := l.link(root, filepath.Join(proc, "fd", e.Name()))
		if s == nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join(proc, "fdinfo", e.Name()))
		if err != nil {
			continue
		}
		_, after, _ := strings.Cut(string(b), "flags:")
		line, _, _ := strings.Cut(after, "\n")
		flags, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
		if err != nil || flags&unix.O_PATH != 0 {
			continue
		}
		s.Flags = append(s.Flags, uint32(flags))
		if flags&unix.O_ACCMODE != unix.O_RDONLY {
			l.written[p] = true
		}
	}
}

// mappings reads smaps, which walks the page tables, only where pages are wanted.
func (l *seedList) mappings(root, proc string, pages bool) {
	name := "/maps"
	if pages {
		name = "/smaps"
	}
	b, err := os.ReadFile(proc + name)
	if err != nil {
		return
	}
	var cur, last *remotefs.SeedPath
	var lastFlags uint32
	var at wire.FileRange
	for in := bufio.NewScanner(bytes.NewReader(b)); in.Scan(); {
		line := in.Text()
		if n, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			if cur != nil && strings.TrimSpace(n) != "0 kB" {
				cur.Ranges = append(cur.Ranges, at)
			}
			continue
		}
		f := strings.Fields(line)
		if len(f) < 5 || len(f[1]) != 4 || strings.HasSuffix(f[0], ":") { // of smaps
			continue
		}
		cur = nil
		if len(f) < 6 || !strings.HasPrefix(f[5], "/") {
			continue
		}
		p := inside(root, line[strings.Index(line, f[5]):])
		if cur = l.at(p); cur == nil {
			continue
		}
		flags := uint32(unix.O_RDONLY)
		if f[1][1] == 'w' && f[1][3] == 's' {
			l.written[p] = true
			flags = unix.O_RDWR
		}
		if cur != last || flags != lastFlags { // CRIU opens a file once for mappings that follow each other
			cur.Flags = append(cur.Flags, flags)
		}
		last, lastFlags = cur, flags
		cur.Data = true
		lo, hi, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(lo, 16, 64)
		end, err2 := strconv.ParseUint(hi, 16, 64)
		off, err3 := strconv.ParseUint(f[2], 16, 64)
		if at = (wire.FileRange{Off: off, Len: end - start}); err1 != nil || err2 != nil || err3 != nil {
			at = wire.FileRange{}
		}
	}
}

// list gives them in order.
func (l *seedList) list() []remotefs.SeedPath {
	out := make([]remotefs.SeedPath, 0, len(l.paths))
	for _, p := range slices.Sorted(maps.Keys(l.paths)) {
		s := *l.paths[p]
		s.Data = s.Data && !l.written[p]
		out = append(out, s)
	}
	return out
}

// ghosts adds the names that CRIU makes for a moment for deleted files (criu/files-reg.c: ghost_path): it looks whether they are free.
func (l *seedList) ghosts(dir string) {
	const most = 16 // of each: all with all
	found, _ := filepath.Glob(filepath.Join(dir, "ghost-file-*.img"))
	for _, g := range found[:min(len(found), most)] {
		id, _ := strings.CutPrefix(strings.TrimSuffix(filepath.Base(g), ".img"), "ghost-file-")
		for _, p := range l.deleted[:min(len(l.deleted), most)] {
			l.at(p + ".cr." + id + ".ghost")
		}
	}
}

// seed says to the file server what a restore of the running tree would ask for.
func (s *Source) seed() {
	var pids []int
	for _, t := range s.rep.Tree.Tasks {
		pids = append(pids, t.PID)
	}
	s.files.Seed(treeSeeds(pids, true).list())
}

// seedFrozen says that the tree stands still, and what its images name.
func (s *Source) seedFrozen() {
	var pids []int
	for _, t := range s.result.Tasks {
		pids = append(pids, t.PID)
	}
	l := treeSeeds(pids, false)
	named, err := images.Paths(s.result.ImagesDir)
	if err != nil {
		s.log.Warn("paths of the images", "err", err) // they are looked up then
	}
	for _, p := range named {
		l.at(p)
	}
	l.ghosts(s.result.ImagesDir)
	s.files.Frozen(l.list())
}
