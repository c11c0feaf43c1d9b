package preflight

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// checkMounts refuses a file that was opened by a mount which the tree's mount namespace has not: opened before the namespace was made (systemd opens a
// service's standard streams so, before PrivateTmp= and the like), or lazily unmounted since. CRIU knows the mounts of the tree's namespaces alone
// and could not say by which path to open it again (criu/files-reg.c, "Can't lookup mount"); it would do so with the tree frozen.
func (in *inspector) checkMounts() {
	known := map[string]bool{}
	own, _ := readlink(filepath.Join(in.proc, "self/ns/mnt"))
	shown, ours := false, false // some task's mounts; one has this process's mount namespace
	for _, t := range in.tasks {
		if t.zombie() {
			continue
		}
		shown = addMounts(known, t.dir) || shown
		ours = ours || t.ns["mnt"] == own
	}
	if ours { // a task that has changed its root sees only what is below
		addMounts(known, filepath.Join(in.proc, "self"))
	}
	if !shown {
		return
	}
	told := map[string]bool{}
	for _, t := range in.tasks {
		in.checkResidual(t, told)
		for _, d := range t.fds {
			if d.kind != kindRegular && d.kind != kindDir && d.kind != kindOther || !strings.HasPrefix(d.link, "/") { // the others are of mounts of the kernel's own
				continue
			}
			if id := d.info["mnt_id"]; id == "" || known[id] {
				continue
			}
			if _, bad := in.refused(d); bad { // told already
				continue
			}
			in.add(Finding{
				"mount-outside", Refuse, t.PID, fmt.Sprintf("descriptor %d of %s is %s, opened by a mount that is not in its mount namespace", d.fd, t.Comm, d.link),
				"CRIU could not say by which path to open it again",
				"let it open the file in its own namespace; for a service of systemd: StandardInput= and StandardOutput= from journal, socket or a pipe, or no PrivateTmp= and other settings that make a mount namespace",
			})
		}
	}
}

// addMounts adds the IDs in a task's mountinfo.
func addMounts(known map[string]bool, dir string) bool {
	b, err := readFile(filepath.Join(dir, "mountinfo"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		id, _, _ := strings.Cut(line, " ")
		if _, err := strconv.Atoi(id); err == nil {
			known[id] = true
		}
	}
	return true
}

// checkResidual refuses a tree that came here and has left a directory on the host that it came from (--remote): as a mount of lazymig's own in its root. A tree whose whole root is one
// can move on.
func (in *inspector) checkResidual(t *task, told map[string]bool) {
	b, err := readFile(filepath.Join(t.dir, "mountinfo"))
	if err != nil {
		return // it has ended
	}
	for _, p := range residual(string(b)) {
		if told[p] {
			continue
		}
		told[p] = true
		in.add(Finding{
			"residual", Refuse, t.PID, fmt.Sprintf("%s, which %s uses, has stayed on the host that it came from (--remote)", p, t.Comm),
			"this host does not have these files and the mount that shows them can't be taken along", "leave the process here, or end it, bring " + p + " here and start it again",
		})
	}
}

// residual are mount points below the root where files of another host are, by a process's mountinfo (proc_pid_mountinfo(5)). /dev/shm belongs to the root.
func residual(mountinfo string) (paths []string) {
	for line := range strings.Lines(mountinfo) {
		mount, fs, ok := strings.Cut(line, " - ")
		f := strings.Fields(mount)
		if ok && len(f) > 4 && strings.HasPrefix(fs, "fuse.lazymig ") && f[4] != "/" && f[4] != "/dev/shm" {
			paths = append(paths, octal.Replace(f[4]))
		}
	}
	return paths
}

var octal = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
