package e2e

import (
	"strings"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// TestSecrets looks, while the target holds a tree that it has asked for, where its memory lies: on both hosts in directories of a tmpfs that
// only root may enter, in files that only root may read; nothing of it, nor of what the records hold, is open to others. On a disk it lies only if both
// sides were told to.
func TestSecrets(t *testing.T) {
	t.Run("memory", func(t *testing.T) { secrets(t, "tmpfs ") })
	t.Run("disk", func(t *testing.T) { secrets(t, " /var/lib/lazymig/", "--images-on-disk") })
}

func secrets(t *testing.T, where string, flags ...string) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=asked:" + gate}, flags...)
	ch := r.checker(r.l.A, 64, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid, flags...)
	r.parked(ag)
	for _, h := range []*lab.Host{r.l.A, r.l.B} {
		all := r.sh(h, imagesOnHost)
		lines := strings.Split(all, "\n")
		if len(lines) < 5 || !strings.Contains(all, "/core-") || !strings.Contains(all, "/pages-") {
			t.Errorf("the images of %s were not found: %q", h.Name, lines)
		}
		for _, l := range lines {
			if !strings.Contains(l, where) {
				t.Errorf("an image of %s lies on %q", h.Name, l)
			}
		}
		if open := r.sh(h, openOnHost); open != "" {
			t.Errorf("open to others on %s:\n%s", h.Name, open)
		}
	}
	r.sh(r.l.B, "touch "+gate)
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
	r.clean()
	for _, h := range []*lab.Host{r.l.A, r.l.B} {
		if left := r.sh(h, imagesOnHost); left != "" {
			t.Errorf("left on %s:\n%s", h.Name, left)
		}
	}
}

// imagesOnHost lists the file system and path of all images of CRIU; openOnHost what somebody else than root could get at: images, and what is
// below the state directory, if all directories above let him through.
const (
	imagesOnHost = `find / -xdev \( -path /proc -o -path /sys \) -prune -o -name '*.img' -print0 2>/dev/null | xargs -0 -r stat -f -c '%T %n'
		for m in /run /dev/shm /tmp /var/lib/lazymig; do find $m -xdev -name '*.img' -print0 2>/dev/null | xargs -0 -r stat -f -c '%T %n'; done`
	openOnHost = `find /run/lazymig-* /dev/shm/lazymig-* /tmp/lazymig-* -maxdepth 0 -type d -perm /077 2>/dev/null
		find /var/lib/lazymig -mindepth 1 -maxdepth 1 -not -name criu -perm /077
		find /run /dev/shm /tmp /var/lib/lazymig -name '*.img' -perm /077 2>/dev/null; true`
)
