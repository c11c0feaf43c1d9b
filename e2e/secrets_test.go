package e2e

import (
	"strings"
	"testing"
)

// TestSecrets looks, while the target holds a tree that it has asked for, where its memory lies: on both hosts in directories of a tmpfs that
// only root may enter, in files that only root may read; nothing of it, nor of what the records hold, is open to others.
func TestSecrets(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=asked:" + gate})
	ch := r.checker(r.l.A, 64, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	for _, h := range []*struct {
		name, out, open, where string
	}{
		{name: r.l.A.Name, where: r.sh(r.l.A, imagesOnHost), open: r.sh(r.l.A, openOnHost)},
		{name: r.l.B.Name, where: r.sh(r.l.B, imagesOnHost), open: r.sh(r.l.B, openOnHost)},
	} {
		lines := strings.Split(h.where, "\n")
		if len(lines) < 5 || !strings.Contains(h.where, "/core-") || !strings.Contains(h.where, "/pages-") {
			t.Errorf("the images of %s were not found: %q", h.name, lines)
		}
		for _, l := range lines {
			if fs, _, _ := strings.Cut(l, " "); fs != "tmpfs" {
				t.Errorf("an image of %s lies on %q", h.name, l)
			}
		}
		if h.open != "" {
			t.Errorf("open to others on %s:\n%s", h.name, h.open)
		}
	}
	r.sh(r.l.B, "touch "+gate)
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
	r.clean()
}

// imagesOnHost lists the file system and path of all images of CRIU; openOnHost what somebody else than root could get at: images, and what is
// below the state directory, if all directories above let him through.
const (
	imagesOnHost = `find / -xdev \( -path /proc -o -path /sys \) -prune -o -name '*.img' -print0 2>/dev/null | xargs -0 -r stat -f -c '%T %n'
		for m in /run /dev/shm /tmp; do find $m -xdev -name '*.img' -print0 2>/dev/null | xargs -0 -r stat -f -c '%T %n'; done`
	openOnHost = `find /run/lazymig-* /dev/shm/lazymig-* /tmp/lazymig-* -maxdepth 0 -type d -perm /077 2>/dev/null
		find /var/lib/lazymig -mindepth 1 -maxdepth 1 -not -name criu -perm /077
		find /run /dev/shm /tmp -name '*.img' -perm /077 2>/dev/null; true`
)
