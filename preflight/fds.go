package preflight

import (
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kind says what a descriptor refers to.
type kind int

const (
	kindOther   kind = 0
	kindRegular kind = 1
	kindDir     kind = 2
	kindPipe    kind = 3
	kindFifo    kind = 4
	kindSocket  kind = 5
	kindTTY     kind = 6
	kindMemfd   kind = 7
	kindAnon    kind = 8
	kindMaster  kind = 9 // the master side of a pseudo terminal
)

// desc is one descriptor of a task.
type desc struct {
	fd    int
	link  string
	path  string // /proc/PID/fd/N
	kind  kind
	st    unix.Stat_t
	flags uint64
	info  map[string]string
}

func (d *desc) reads() bool {
	return d.flags&unix.O_ACCMODE != unix.O_WRONLY && d.flags&unix.O_PATH == 0
}

func (d *desc) writes() bool {
	return d.flags&unix.O_ACCMODE != unix.O_RDONLY && d.flags&unix.O_PATH == 0
}
func (d *desc) key() inodeKey { return keyOf(&d.st) }

// anonType is "[eventfd]" of "anon_inode:[eventfd]".
func (d *desc) anonType() string { return strings.TrimPrefix(d.link, "anon_inode:") }

// readFDs reads a task's descriptors. Those that are closed meanwhile are left out.
func (in *inspector) readFDs(t *task) {
	fds, err := numbers(filepath.Join(t.dir, "fd"))
	if err != nil {
		if !gone(err) && !t.zombie() {
			in.add(Finding{"unreadable", Refuse, t.PID, "its descriptors cannot be read", err.Error(), "run as root"})
		}
		return
	}
	sort.Ints(fds)
	for _, fd := range fds {
		if d := in.readFD(t, fd); d != nil {
			t.fds = append(t.fds, d)
		}
	}
}

func (in *inspector) readFD(t *task, fd int) *desc {
	d := &desc{fd: fd, path: filepath.Join(t.dir, "fd", strconv.Itoa(fd))}
	var err error
	if d.link, err = readlink(d.path); err != nil {
		return nil
	}
	if ino, ok := between(d.link, "socket"); ok {
		d.kind, d.st.Ino, d.flags = kindSocket, ino, unix.O_RDWR
		return d
	}
	b, err := readFile(filepath.Join(t.dir, "fdinfo", strconv.Itoa(fd)))
	if err != nil {
		return nil
	}
	d.info = keyed(b)
	d.flags, _ = strconv.ParseUint(d.info["flags"], 8, 64)
	if strings.HasPrefix(d.link, "anon_inode:") {
		d.kind = kindAnon
		return d
	}
	// Stat follows the link to the open file itself, whatever its name is now and in whatever mount namespace it is.
	if err := unix.Stat(d.path, &d.st); err != nil {
		return nil
	}
	d.kind = kindOf(d)
	return d
}

func kindOf(d *desc) kind {
	switch d.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return kindDir
	case unix.S_IFIFO:
		if strings.HasPrefix(d.link, "pipe:[") {
			return kindPipe
		}
		return kindFifo
	case unix.S_IFREG:
		if isMemfd(d.link) {
			return kindMemfd
		}
		return kindRegular
	case unix.S_IFCHR:
		switch major := unix.Major(d.st.Rdev); {
		case major == 5 && unix.Minor(d.st.Rdev) == 2:
			return kindMaster
		case major == 4, major == 5, major >= 136 && major <= 143, major == 204, major == 229:
			return kindTTY
		}
	}
	return kindOther
}

func isMemfd(link string) bool {
	return strings.HasPrefix(link, "/memfd:") && strings.HasSuffix(link, " (deleted)")
}

// object is a reason to refuse a kind of kernel object.
type object struct{ code, what, why, do string }

const cannot = "its state cannot be read and made again"

// refusedAnon has the anonymous inodes which are known and cannot be moved.
var refusedAnon = map[string]object{
	"[io_uring]":         {"io-uring", "an io_uring", "CRIU cannot dump its rings, and requests in flight write into frozen pages", "start it without: UV_USE_IO_URING=0 for node, --innodb-use-native-aio=0 for MariaDB, kernel.io_uring_disabled=2 for all"},
	"[userfaultfd]":      {"userfaultfd", "a userfaultfd", "a second handler of its page faults would be lost, and lazymig needs its own", "end what uses it (a garbage collector, a sandbox) or switch it off there"},
	"[perf_event]":       {"perf-event", "a perf event", "counters belong to this CPU and kernel", "stop the profiler"},
	"bpf-map":            {"bpf", "a BPF map", cannot, "start it without BPF"},
	"bpf-prog":           {"bpf", "a BPF program", cannot, "start it without BPF"},
	"bpf_link":           {"bpf", "a BPF link", cannot, "start it without BPF"},
	"bpf-link":           {"bpf", "a BPF link", cannot, "start it without BPF"},
	"btf":                {"bpf", "BPF type data", cannot, "start it without BPF"},
	"bpf_iter":           {"bpf", "a BPF iterator", cannot, "start it without BPF"},
	"seccomp notify":     {"seccomp-notify", "a seccomp listener", "the processes that it watches would hang", "migrate without the supervisor"},
	"[landlock-ruleset]": {"landlock-ruleset", "a Landlock ruleset", cannot, "let it close the ruleset after landlock_restrict_self"},
	"[secretmem]":        {"secretmem", "secret memory", "nobody but the process can read it", "start it without memfd_secret"},
	"secretmem":          {"secretmem", "secret memory", "nobody but the process can read it", "start it without memfd_secret"},
}

// keptAnon has those that CRIU restores.
var keptAnon = []string{"[eventfd]", "[eventpoll]", "inotify", "[inotify]", "[signalfd]", "[timerfd]", "[fanotify]", "[pidfd]"}

// checkFDs looks at each descriptor by itself; who else holds it comes later.
func (in *inspector) checkFDs(t *task) {
	for _, d := range t.fds {
		if o, bad := in.refused(d); bad {
			in.add(Finding{o.code, Refuse, t.PID, fmt.Sprintf("descriptor %d of %s is %s", d.fd, t.Comm, o.what), o.why, o.do})
			continue
		}
		switch d.kind {
		case kindRegular:
			in.checkDeleted(t, d.link, fmt.Sprintf("descriptor %d", d.fd), &d.st)
		case kindSocket:
			s := in.socks[d.st.Ino]
			if s == nil {
				s = &sock{ino: d.st.Ino}
				in.socks[d.st.Ino] = s
			}
			s.holders = append(s.holders, holder{t, d})
		}
		in.checkPidfd(t, d)
	}
}

// refused says whether a descriptor's kind alone forbids the migration.
func (in *inspector) refused(d *desc) (object, bool) {
	if d.kind == kindAnon {
		name := d.anonType()
		if o, ok := refusedAnon[name]; ok {
			return o, true
		}
		if strings.HasPrefix(name, "kvm") {
			return object{"kvm", "a virtual machine (" + name + ")", cannot, "migrate the machine with its own tool"}, true
		}
		if !slices.Contains(keptAnon, name) {
			return object{"unknown-object", "of an unknown kind, " + name, cannot, "close it before"}, true
		}
		return object{}, false
	}
	if d.flags&unix.O_PATH != 0 {
		return object{}, false
	}
	switch d.st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return refusedDevice(d)
	case unix.S_IFBLK:
		return object{"device", "the block device " + d.link, "devices are not moved", "close it before"}, true
	case unix.S_IFREG:
		return in.refusedFile(d)
	}
	return object{}, false
}

func refusedDevice(d *desc) (object, bool) {
	major, minor := unix.Major(d.st.Rdev), unix.Minor(d.st.Rdev)
	switch {
	case d.kind == kindTTY, d.kind == kindMaster, major == 1:
		return object{}, false
	case major == 10 && minor == 200:
		return object{"tun", "a TUN/TAP interface", "the interface belongs to this host", "close it before, or run the tunnel outside of the tree"}, true
	case major == 10 && minor == 229:
		return object{"fuse", "/dev/fuse", "it serves a file system that stays here", "migrate without the FUSE daemon"}, true
	case major == 10 && minor == 232:
		return object{"kvm", "/dev/kvm", cannot, "migrate the virtual machine with its own tool"}, true
	case strings.HasPrefix(d.link, "/dev/userfaultfd"):
		return refusedAnon["[userfaultfd]"], true
	}
	return object{"device", "the device " + d.link, "devices are not moved", "close it before"}, true
}

const (
	mqueueMagic    = 0x19800202
	secretmemMagic = 0x5345434d
	nsfsMagic      = 0x6e736673
)

// refusedFile looks at regular files of kernel file systems. Only those of no device are asked for their type.
func (in *inspector) refusedFile(d *desc) (object, bool) {
	if unix.Major(d.st.Dev) != 0 || d.kind == kindMemfd {
		return object{}, false
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(d.path, &fs); err != nil {
		return object{}, false
	}
	switch fs.Type {
	case mqueueMagic:
		return object{"mqueue", "the POSIX message queue " + d.link, "it belongs to this host's IPC namespace", "start it with unshare -i, or close the queue"}, true
	case secretmemMagic:
		return refusedAnon["[secretmem]"], true
	case nsfsMagic:
		for _, l := range in.rep.Tree.Namespaces {
			if l == d.link {
				return object{}, false
			}
		}
		return object{"namespace-descriptor", "the namespace " + d.link, "it is not the tree's own", "close it before"}, true
	}
	if strings.HasPrefix(d.link, "/dmabuf:") {
		return object{"device", "a DMA buffer", "devices are not moved", "close it before"}, true
	}
	return object{}, false
}

// checkPidfd refuses a pidfd of a living process that stays here.
func (in *inspector) checkPidfd(t *task, d *desc) {
	if d.link != "anon_inode:[pidfd]" && !strings.HasPrefix(d.link, "pidfd:[") {
		return
	}
	pid, err := strconv.Atoi(d.info["Pid"])
	if err != nil || pid < 0 || in.byPID[pid] != nil {
		return // of the tree, or of a process that has ended
	}
	in.add(Finding{
		"pidfd-outside", Refuse, t.PID, fmt.Sprintf("descriptor %d of %s is a pidfd of %s", d.fd, t.Comm, in.who(pid)),
		"that process stays on this host", "migrate the tree that has both, or close it",
	})
}

const ghostDefault = 1 << 20 // CRIU's own limit

// checkDeleted sets the options for a file without a name, or with another one than it was opened by.
func (in *inspector) checkDeleted(t *task, link, where string, st *unix.Stat_t) {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || !strings.HasSuffix(link, " (deleted)") {
		return
	}
	want := &in.rep.Want
	switch {
	case st.Nlink > 0:
		in.add(Finding{"link-remap", Info, t.PID, fmt.Sprintf("%s of %s is a file whose name was removed, but which has another: %s", where, t.Comm, link), "", "it gets one more name while it is dumped"})
	case st.Size >= 1<<32:
		in.add(Finding{
			"ghost-too-large", Refuse, t.PID, fmt.Sprintf("%s of %s is a deleted file of %d MB: %s", where, t.Comm, st.Size>>20, link),
			"CRIU moves deleted files below 4 GB only", "let it close the file",
		})
	default:
		if st.Size > ghostDefault {
			want.GhostLimit = max(want.GhostLimit, uint32(st.Size))
		}
		in.add(Finding{"ghost-file", Info, t.PID, fmt.Sprintf("%s of %s is a deleted file of %d bytes: %s", where, t.Comm, st.Size, link), "it moves with the tree", "--ghost-limit is set"})
	}
}

// checkPaths looks at the executable and at what is mapped under a removed name.
func (in *inspector) checkPaths(t *task) {
	if t.zombie() {
		return
	}
	look := func(path, where string) {
		link, err := readlink(path)
		if err != nil || !strings.HasSuffix(link, " (deleted)") {
			return
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			in.checkDeleted(t, link, where, &st)
		}
	}
	look(filepath.Join(t.dir, "exe"), "the executable")
	seen := map[inodeKey]bool{}
	for i := range t.vmas {
		v := &t.vmas[i]
		if v.key.ino == 0 || seen[v.key] || v.memoryObject() || isMemfd(v.path) || !strings.HasSuffix(v.path, " (deleted)") || strings.HasPrefix(v.path, "/dev/zero") ||
			strings.HasPrefix(v.path, "/SYSV") || strings.HasPrefix(v.path, "/[aio]") || strings.HasPrefix(v.path, "/anon_hugepage") {
			continue
		}
		seen[v.key] = true
		look(filepath.Join(t.dir, "map_files", fmt.Sprintf("%x-%x", v.start, v.end)), "a mapping")
	}
}
