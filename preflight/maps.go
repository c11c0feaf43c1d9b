package preflight

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelAreas are mapped by the kernel itself, which may seal them in every process.
var kernelAreas = []string{"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]", "[sigpage]", "[vectors]"}

// checkMaps reads a task's mappings and their flags.
func (in *inspector) checkMaps(t *task) {
	if t.zombie() {
		return
	}
	var err error
	if t.vmas, err = readVMAs(filepath.Join(t.dir, "smaps")); err != nil {
		if !gone(err) {
			in.add(Finding{"unreadable", Refuse, t.PID, "its mappings cannot be read", err.Error(), "run as root"})
		}
		return
	}
	aio, sealed := false, 0
	for i := range t.vmas {
		v := &t.vmas[i]
		name := strings.TrimSuffix(v.path, " (deleted)")
		switch {
		case strings.HasPrefix(v.path, "anon_inode:"):
			d := &desc{kind: kindAnon, link: name}
			if o, bad := in.refused(d); bad {
				in.add(Finding{o.code, Refuse, t.PID, fmt.Sprintf("%s has mapped %s", t.Comm, o.what), o.why, o.do})
			}
		case name == "/secretmem":
			o := refusedAnon["[secretmem]"]
			in.add(Finding{o.code, Refuse, t.PID, fmt.Sprintf("%s has mapped %s", t.Comm, o.what), o.why, o.do})
		case name == "/[aio]":
			aio = true
		case strings.HasPrefix(name, "/SYSV") && !slices.Contains(in.rep.Tree.Foreign, "ipc"):
			in.add(Finding{
				"sysv-shm", Refuse, t.PID, fmt.Sprintf("%s uses SysV shared memory (%s) of this host's IPC namespace", t.Comm, name),
				"everybody on the host may attach it, so it cannot leave", "start it with unshare -i",
			})
		case v.has("um"), v.has("uw"), v.has("ui"):
			in.add(Finding{
				"userfaultfd-registered", Refuse, t.PID, fmt.Sprintf("%s has memory at %#x that is registered with a userfaultfd", t.Comm, v.start),
				"two handlers cannot share it", "end what handles its faults",
			})
		case v.has("io"), v.has("pf"):
			if !slices.Contains(kernelAreas, v.path) {
				in.add(Finding{"device-memory", Refuse, t.PID, fmt.Sprintf("%s has mapped device memory: %s", t.Comm, name), "devices are not moved", "let it release the device"})
			}
		}
		if v.has("sl") && !slices.Contains(kernelAreas, v.path) {
			sealed++
		}
	}
	if sealed > 0 {
		in.loss("mseal", t.PID, fmt.Sprintf("%s has sealed %d mappings (mseal)", t.Comm, sealed), "they would be unsealed at the target")
	}
	if aio {
		in.checkAIO(t)
	}
}

// checkAIO: requests on O_DIRECT files and block devices run on behind the freezer and write into frozen pages. On
// other files io_submit itself does the work, and a ring that is never used (nginx) is harmless.
func (in *inspector) checkAIO(t *task) {
	for _, d := range t.fds {
		if d.flags&unix.O_DIRECT != 0 && d.flags&unix.O_PATH == 0 && d.kind == kindRegular {
			in.add(Finding{
				"aio-direct", Refuse, t.PID, fmt.Sprintf("%s does native AIO, and descriptor %d (%s) is open with O_DIRECT", t.Comm, d.fd, d.link),
				"requests in flight would write into frozen pages", "--innodb-use-native-aio=0 for MariaDB; aio threads and no directio for nginx",
			})
			return
		}
	}
	in.add(Finding{"aio", Info, t.PID, t.Comm + " has a native AIO ring", "without O_DIRECT nothing is in flight while it is frozen", ""})
}

// loss refuses a protection that would vanish, unless told to go on.
func (in *inspector) loss(code string, pid int, what, why string) {
	f := Finding{code, Refuse, pid, what, why, "--accept-loss to go on without it"}
	if in.opt.AcceptLoss {
		f.Level, f.Do = Warn, "accepted"
	}
	in.add(f)
}

// checkSizes adds up what has to be moved beside private memory. Each file and object counts once.
func (in *inspector) checkSizes() {
	tree := &in.rep.Tree
	memory, files := map[inodeKey]uint64{}, map[inodeKey]bool{}
	eager, ends, who := map[inodeKey]string{}, map[inodeKey]uint64{}, map[inodeKey]*task{}
	file := func(st *unix.Stat_t) {
		if key := keyOf(st); st.Mode&unix.S_IFMT == unix.S_IFREG && !files[key] {
			files[key] = true
			if st.Nlink == 0 {
				tree.EagerBytes += uint64(st.Blocks) * 512
			} else {
				tree.FileBytes += uint64(st.Blocks) * 512
			}
		}
	}
	for _, t := range in.tasks {
		for _, d := range t.fds {
			switch d.kind {
			case kindRegular:
				file(&d.st)
			case kindMemfd:
				memory[d.key()] = max(memory[d.key()], uint64(d.st.Blocks)*512)
				eager[d.key()], who[d.key()] = d.link, t
			}
		}
		for i := range t.vmas {
			v := &t.vmas[i]
			if isMemfd(v.path) && !v.shared() {
				eager[v.key] = v.path
			}
			switch {
			case v.key.ino == 0 || files[v.key]:
			case v.memoryObject():
				memory[v.key] = max(memory[v.key], v.present)
				ends[v.key] = max(ends[v.key], v.offset+v.end-v.start)
				if who[v.key] == nil {
					who[v.key] = t
				}
				if !v.lazyShared() {
					eager[v.key] = v.path
				}
			case strings.HasPrefix(v.path, "/"):
				var st unix.Stat_t
				if unix.Stat(filepath.Join(t.dir, "map_files", fmt.Sprintf("%x-%x", v.start, v.end)), &st) == nil {
					file(&st)
				}
				files[v.key] = true
			}
		}
	}
	for key, n := range memory {
		if eager[key] == "" && ends[key] >= leastShared {
			continue // it comes like private memory, and is counted where it is resident
		}
		tree.EagerBytes += n
		if path := eager[key]; path != "" && n >= leastShared {
			in.add(Finding{
				"shared-eager", Info, who[key].PID, fmt.Sprintf("%s shares %s of memory: %s", who[key].Comm, size(n), strings.TrimSuffix(path, " (deleted)")),
				"it is open as a descriptor, SysV, or locked, so it is copied while the tree stands still", "close the descriptor of a memfd that is mapped",
			})
		}
	}
}
