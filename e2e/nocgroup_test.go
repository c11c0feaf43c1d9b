package e2e

import (
	"strings"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// TestNoCgroup2: where no path leads to cgroup v2, as on a host whose controllers are all on v1, the freezer and the capsule's cgroups are reached by a mount
// that nobody else sees.
func TestNoCgroup2(t *testing.T) {
	r := newHosts(t, "checker")
	a, b := r.l.A, r.l.B
	none := func(h *lab.Host) {
		t.Helper()
		if s := r.sh(h, "find /sys/fs/cgroup -name cgroup.procs -path '*lazymig-*'; ls /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/unified/cgroup.procs 2>/dev/null; true"); s != "" {
			t.Errorf("on %s there is cgroup v2: %s", h.Name, s)
		}
	}
	mounts := func(h *lab.Host) string { return r.sh(h, "grep -c cgroup2 /proc/mounts; true") }
	for _, h := range []*lab.Host{a, b} {
		r.sh(h, "mount -t tmpfs none /sys/fs/cgroup")
		none(h)
	}
	before := mounts(a) + mounts(b)
	r.agent(b)
	ch := r.checker(a, 64, 2)
	in := func(h *lab.Host, pid string) string {
		return r.sh(h, "sed -n s/^0:://p /proc/"+pid+"/cgroup")
	}
	pid, _ := r.move(a, b, ch.proc.Pid)
	if cg := in(b, "$(pgrep -x checker)"); !strings.Contains(cg, "lazymig-") || !strings.HasSuffix(cg, "-dst/tree") {
		t.Errorf("the tree is in cgroup %s", cg)
	}
	none(a)
	none(b)
	if now := mounts(a) + mounts(b); now != before {
		t.Errorf("mounts of cgroup v2: %s, were %s", now, before)
	}
	ch.verdict(a, b, pid)
	r.clean()
}
