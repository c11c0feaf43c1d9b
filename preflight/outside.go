package preflight

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// outside is what the rest of the host holds of the tree's objects.
type outside struct {
	procs   []outProc
	links   map[string][]outFD   // by the text of the link, for those that the tree has too
	maps    map[inodeKey][]outVM // shared mappings of objects that the tree has too
	anon    []outFD              // anonymous inodes of a type that the tree has too
	masters map[int][]outFD      // pseudo terminals by index
}

type outProc struct {
	pid  int
	stat procStat
}

type outFD struct {
	pid, fd int
	link    string
	path    string
}

type outVM struct {
	pid   int
	write bool
}

// ordered are the anonymous types which only kcmp can tell apart: they all share one inode.
var ordered = []string{"[eventpoll]", "[timerfd]", "inotify", "[inotify]", "[signalfd]", "[fanotify]", "[eventfd]"}

// scanOutside reads each other process once, and only what the tree has too.
func (in *inspector) scanOutside() (*outside, error) {
	out := &outside{links: map[string][]outFD{}, maps: map[inodeKey][]outVM{}, masters: map[int][]outFD{}}
	links, anon, mapped := map[string]bool{}, map[string]bool{}, map[inodeKey]bool{}
	ttys := false
	for _, t := range in.tasks {
		for _, d := range t.fds {
			switch {
			case d.kind == kindAnon:
				if slices.Contains(ordered, d.anonType()) {
					anon[d.link] = true
				}
			case d.kind == kindTTY:
				ttys = true
			case d.kind == kindRegular && !d.writes(), d.kind == kindDir, d.kind == kindOther:
			default:
				links[d.link] = true
				if d.kind == kindMemfd {
					mapped[d.key()] = true
				}
			}
		}
		for i := range t.vmas {
			if v := &t.vmas[i]; v.shared() && v.key.ino != 0 && (v.memoryObject() || v.mayWrite()) {
				mapped[v.key] = true
				links[v.path] = true
			}
		}
	}
	for _, s := range in.socks {
		if s.unix.peer != 0 {
			links[fmt.Sprintf("socket:[%d]", s.unix.peer)] = true
		}
	}
	pids, err := numbers(in.proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	stats := make(map[int]procStat, len(pids))
	for _, pid := range pids {
		if st, err := readStat(in.dir(pid)); err == nil {
			stats[pid] = st
		}
	}
	for _, pid := range pids {
		if err := in.ctx.Err(); err != nil {
			return nil, err
		}
		st, ok := stats[pid]
		if !ok || st.flags&pfKthread != 0 || in.below(stats, pid) {
			continue
		}
		out.procs = append(out.procs, outProc{pid, st})
		in.scanFDs(out, pid, links, anon, ttys)
		if len(mapped) > 0 {
			in.scanMaps(out, pid, mapped)
		}
	}
	return out, nil
}

// below finds the tree's own, also children that were born after it was listed: they are no outsiders.
func (in *inspector) below(stats map[int]procStat, pid int) bool {
	for range len(stats) {
		if in.byPID[pid] != nil {
			return true
		}
		st, ok := stats[pid]
		if !ok || st.ppid == 0 {
			break
		}
		pid = st.ppid
	}
	return false
}

func (in *inspector) scanFDs(out *outside, pid int, links, anon map[string]bool, ttys bool) {
	if len(links) == 0 && len(anon) == 0 && !ttys {
		return
	}
	dir := filepath.Join(in.dir(pid), "fd")
	fds, err := numbers(dir)
	if err != nil {
		return // ended, or a zombie
	}
	for _, fd := range fds {
		h := outFD{pid: pid, fd: fd, path: filepath.Join(dir, strconv.Itoa(fd))}
		if h.link, err = readlink(h.path); err != nil {
			continue
		}
		switch {
		case links[h.link]:
			out.links[h.link] = append(out.links[h.link], h)
		case anon[h.link]:
			out.anon = append(out.anon, h)
		case ttys && strings.HasSuffix(h.link, "ptmx"):
			b, err := readFile(filepath.Join(in.dir(pid), "fdinfo", strconv.Itoa(fd)))
			if n, err2 := strconv.Atoi(keyed(b)["tty-index"]); err == nil && err2 == nil {
				out.masters[n] = append(out.masters[n], h)
			}
		}
	}
}

func (in *inspector) scanMaps(out *outside, pid int, want map[inodeKey]bool) {
	vmas, err := readVMAs(filepath.Join(in.dir(pid), "maps"))
	if err != nil {
		return
	}
	for i := range vmas {
		if v := &vmas[i]; v.shared() && want[v.key] {
			out.maps[v.key] = append(out.maps[v.key], outVM{pid, v.writable()})
		}
	}
}

// same finds the outsiders that hold the very file of a link: names may be equal in different mount namespaces.
func (out *outside) same(link string, key inodeKey) []outFD {
	var same []outFD
	for _, h := range out.links[link] {
		// Not from a server: a FUSE file of a capsule whose source is lost would answer when that comes back.
		var st unix.Statx_t
		if unix.Statx(unix.AT_FDCWD, h.path, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st) == nil &&
			(inodeKey{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}) == key {
			same = append(same, h)
		}
	}
	return same
}

// checkOutside compares what the tree holds with what others hold.
func (in *inspector) checkOutside(out *outside) {
	std := in.stdioObjects()
	for _, t := range in.tasks {
		for _, d := range t.fds {
			switch d.kind {
			case kindPipe, kindFifo:
				if hs := out.same(d.link, d.key()); len(hs) > 0 {
					in.heldOutside(std, t, d, hs, "pipe-outside", "a pipe", "let "+in.who(hs[0].pid)+" close it, or migrate both")
				}
			case kindMemfd:
				in.memoryOutside(out, t, d.key(), d.link)
			case kindRegular:
				if hs := out.same(d.link, d.key()); d.writes() && len(hs) > 0 {
					in.fileOutside(t, d, hs)
				}
			}
		}
		for i := range t.vmas {
			v := &t.vmas[i]
			switch {
			case !v.shared() || v.key.ino == 0:
			case v.memoryObject():
				if v.mayWrite() || in.writtenOutside(out, v.key) {
					in.memoryOutside(out, t, v.key, v.path)
				}
			case v.mayWrite() && len(out.maps[v.key]) > 0:
				in.add(Finding{
					"file-shared", Warn, t.PID, fmt.Sprintf("%s has mapped %s shared, and so has %s", t.Comm, v.path, in.who(out.maps[v.key][0].pid)),
					"at the target it does not see what that process writes", "end that process, or migrate both",
				})
			}
		}
	}
	in.socketsOutside(out, std)
	in.anonOutside(out)
}

// stdioObjects are the links that any task of the tree has as standard input, output or error.
func (in *inspector) stdioObjects() map[string]bool {
	std := map[string]bool{}
	for _, t := range in.tasks {
		for _, d := range t.fds {
			if d.fd <= 2 && (d.kind == kindPipe || d.kind == kindFifo || d.kind == kindSocket || d.kind == kindTTY) {
				std[d.link] = true
			}
		}
	}
	return std
}

// heldOutside lists a descriptor in Want.Stdio, or refuses it.
func (in *inspector) heldOutside(std map[string]bool, t *task, d *desc, hs []outFD, code, what, do string) {
	peer := ""
	if len(hs) > 0 {
		peer = in.who(hs[0].pid)
	}
	if std[d.link] {
		in.addStdio(t, d, peer)
		return
	}
	if peer == "" {
		peer = "a process that is not seen from here"
	}
	in.add(Finding{
		code, Refuse, t.PID, fmt.Sprintf("descriptor %d of %s is %s (%s) that is also held by %s", d.fd, t.Comm, what, d.link, peer),
		"half of it cannot be moved", do,
	})
}

func (in *inspector) addStdio(t *task, d *desc, peer string) {
	s := Stdio{PID: t.PID, NSPid: t.NSPid, FD: d.fd, Link: d.link, Inode: d.st.Ino, Read: d.reads(), Write: d.writes(), Peer: peer}
	switch d.kind {
	case kindPipe:
		s.Kind, s.Key = "pipe", d.link
	case kindFifo:
		s.Kind, s.Key = "fifo", d.link
	case kindSocket:
		s.Kind, s.Key = "socket", fmt.Sprintf("unix[%d]", d.st.Ino)
		k := in.socks[d.st.Ino]
		s.Half = k != nil && k.table == "unix" && k.unix.typ == unix.SOCK_STREAM && k.unix.peer != 0 && in.socks[k.unix.peer] == nil
	case kindTTY:
		s.Kind, s.Key = "tty", fmt.Sprintf("tty[%x:%x]", d.st.Rdev, d.st.Dev)
	}
	want := &in.rep.Want
	if slices.Contains(want.Stdio, s) {
		return
	}
	want.Stdio = append(want.Stdio, s)
	other := "nobody known"
	if peer != "" {
		other = peer
	}
	in.add(Finding{"stdio", Info, t.PID, fmt.Sprintf("descriptor %d of %s is a %s shared with %s", d.fd, t.Comm, s.Kind, other), "", "--stdio says where it goes"})
}

func (in *inspector) writtenOutside(out *outside, key inodeKey) bool {
	return slices.ContainsFunc(out.maps[key], func(m outVM) bool { return m.write })
}

// memoryOutside refuses memory that somebody else has mapped or open.
func (in *inspector) memoryOutside(out *outside, t *task, key inodeKey, link string) {
	pid := 0
	if ms := out.maps[key]; len(ms) > 0 {
		pid = ms[0].pid
	} else if hs := out.same(link, key); len(hs) > 0 {
		pid = hs[0].pid
	}
	if pid != 0 {
		in.add(Finding{
			"memory-outside", Refuse, t.PID, fmt.Sprintf("%s shares memory (%s) with %s", t.Comm, link, in.who(pid)),
			"two hosts cannot share it", "end " + in.who(pid) + ", or migrate a tree that has both",
		})
	}
}

// fileOutside warns of a file that the tree writes and others have open for writing.
func (in *inspector) fileOutside(t *task, d *desc, hs []outFD) {
	for _, h := range hs {
		b, err := readFile(filepath.Join(in.dir(h.pid), "fdinfo", strconv.Itoa(h.fd)))
		if err != nil {
			continue
		}
		flags, _ := strconv.ParseUint(keyed(b)["flags"], 8, 64)
		if flags&unix.O_ACCMODE != unix.O_RDONLY && flags&unix.O_PATH == 0 {
			in.add(Finding{
				"file-shared", Warn, t.PID, fmt.Sprintf("%s and %s both have %s open for writing", t.Comm, in.who(h.pid), d.link),
				"its size may change between dump and restore, and later the two no longer see each other's writes", "end that process, or migrate both",
			})
			return
		}
	}
}

// socketsOutside looks for other ends, and other holders, of the tree's sockets.
func (in *inspector) socketsOutside(out *outside, std map[string]bool) {
	inos := make([]uint64, 0, len(in.socks))
	for ino := range in.socks {
		inos = append(inos, ino)
	}
	slices.Sort(inos)
	for _, ino := range inos {
		s := in.socks[ino]
		h := s.holders[0]
		link := h.d.link
		also := out.links[link]
		peer := s.unix.peer
		halfPair := s.table == "unix" && peer != 0 && in.socks[peer] == nil
		switch {
		case std[link] && (halfPair || len(also) > 0):
			hs := also
			if halfPair {
				hs = append(slices.Clone(out.links[fmt.Sprintf("socket:[%d]", peer)]), also...)
			}
			for _, h := range s.holders {
				in.heldOutside(std, h.t, h.d, hs, "", "", "")
			}
		case halfPair && s.unix.typ == unix.SOCK_DGRAM && lasting(s.peerName):
			if want := &in.rep.Want; !slices.Contains(want.Datagrams, s.peerName) {
				want.Datagrams = append(want.Datagrams, s.peerName)
			}
			in.add(Finding{
				"unix-datagram", Info, h.t.PID, fmt.Sprintf("descriptor %d of %s sends datagrams to %q", h.d.fd, h.t.Comm, s.peerName),
				"at the target it is connected to the socket of that name there", "",
			})
		case halfPair:
			in.heldOutside(std, h.t, h.d, out.links[fmt.Sprintf("socket:[%d]", peer)], "unix-peer", "one end of an AF_UNIX connection, the other end", "quiesce the client: let it disconnect")
		case len(also) == 0:
		case s.table == "unix" && s.state != tcpListen && s.unix.state != tcpListen && peer != 0:
			in.heldOutside(std, h.t, h.d, also, "unix-shared", "an AF_UNIX connection", "let "+in.who(also[0].pid)+" close its copy")
		default:
			in.add(Finding{
				"socket-shared", Warn, h.t.PID, fmt.Sprintf("descriptor %d of %s is a socket that %s holds too", h.d.fd, h.t.Comm, in.who(also[0].pid)),
				"what arrives there after the migration is not seen by the tree", "stop its socket activation",
			})
		}
	}
}

// lasting says whether a socket's name means the same everywhere on a host: abstract, or an absolute path.
func lasting(name string) bool {
	return strings.HasPrefix(name, "\x00") || strings.HasPrefix(name, "/")
}

// anonOutside finds eventfds, epolls, timers … that others hold too. kcmp puts open files into an order, so the
// tree's are sorted and each outsider's is looked up.
func (in *inspector) anonOutside(out *outside) {
	if len(out.anon) == 0 {
		return
	}
	byLink := map[string][]holder{}
	for _, t := range in.tasks {
		for _, d := range t.fds {
			if d.kind == kindAnon && slices.Contains(ordered, d.anonType()) {
				byLink[d.link] = append(byLink[d.link], holder{t, d})
			}
		}
	}
	for _, hs := range byLink {
		slices.SortFunc(hs, func(a, b holder) int { return fileOrder(a.t.PID, a.d.fd, b.t.PID, b.d.fd) })
	}
	for _, o := range out.anon {
		hs := byLink[o.link]
		i := sort.Search(len(hs), func(i int) bool { return fileOrder(hs[i].t.PID, hs[i].d.fd, o.pid, o.fd) >= 0 })
		if i == len(hs) || kcmp(hs[i].t.PID, o.pid, kcmpFile, uintptr(hs[i].d.fd), uintptr(o.fd)) != 0 {
			continue
		}
		h := hs[i]
		code := "object-outside"
		if h.d.anonType() == "[eventfd]" {
			code = "eventfd-outside"
		}
		in.add(Finding{
			code, Refuse, h.t.PID, fmt.Sprintf("descriptor %d of %s (%s) is also held by %s", h.d.fd, h.t.Comm, h.d.link, in.who(o.pid)),
			"two hosts cannot share it", "let " + in.who(o.pid) + " close its copy, or migrate a tree that has both",
		})
	}
}

// fileOrder is the kernel's order of two open files; unknown counts as equal.
func fileOrder(pid1, fd1, pid2, fd2 int) int {
	switch kcmp(pid1, pid2, kcmpFile, uintptr(fd1), uintptr(fd2)) {
	case 1:
		return -1
	case 2:
		return 1
	case 3:
		return cmp.Compare(pid1, pid2)
	}
	return 0
}
