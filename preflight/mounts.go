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
	for _, t := range in.tasks {
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
