package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// threads is what /proc says of all threads of lazymig's process with this subcommand, each line once.
func (r *rig) threads(h *lab.Host, sub string) string {
	r.t.Helper()
	return r.sh(h, `for p in /proc/[0-9]*; do
	case "$(tr '\0' ' ' <$p/cmdline)" in */lazymig\ `+sub+`*) cat $p/task/*/status | grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' | tr '\t' ' ' | sort -u;; esac
done`)
}

// TestPrivileges looks at the processes of a migration that has come to drained: each has what SECURITY.md says, and the tree has lost nothing.
func TestPrivileges(t *testing.T) {
	r := newRig(t, "streams")
	s := r.startStreams("cat /srv/ctl | $PROG | cat >/srv/out")
	pid, _ := r.move(r.l.A, r.l.B, s.pid)
	for _, p := range []struct {
		host *lab.Host
		sub  string
		want []string
	}{
		{r.l.B, "fuse-daemon", []string{"NoNewPrivs: 1", "Seccomp: 2", "CapEff: 0000000088a0401f", "CapBnd: 0000000088a0401f"}},
		{r.l.B, "fuse-keeper", []string{"NoNewPrivs: 1", "CapEff: 0000000088a0401f"}},
		{r.l.B, "carrier", []string{"NoNewPrivs: 1", "Seccomp: 2", "CapEff: 0000000000000006"}},
		{r.l.A, "source", []string{"NoNewPrivs: 1", "Seccomp: 2"}},
		{r.l.A, "warden", []string{"NoNewPrivs: 1"}},
	} {
		got := r.threads(p.host, p.sub)
		for _, w := range p.want {
			name, _, _ := strings.Cut(w, " ")
			if strings.Count(got, name) != 1 || !strings.Contains(got, w) {
				t.Errorf("%s: %q is not what all its threads have:\n%s", p.sub, w, got)
			}
		}
	}
	if got := r.sh(r.l.B, fmt.Sprintf("cat /proc/%d/task/*/status | grep -E '^(NoNewPrivs|Seccomp):' | tr '\\t' ' ' | sort -u", pid)); got != "NoNewPrivs: 0\nSeccomp: 0" {
		t.Errorf("the tree has %q", got)
	}
	s.goesOn()
	s.end()
	r.sourceEnds()
	r.clean()
}
