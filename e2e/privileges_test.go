package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// threads is what /proc says of all threads of lazymig's processes with this subcommand, each line once.
func (r *rig) threads(h *lab.Host, sub string) string {
	r.t.Helper()
	return r.sh(h, `for p in /proc/[0-9]*; do
	case "$(tr '\0' ' ' <$p/cmdline)" in */lazymig\ `+sub+`*) cat $p/task/*/status | grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' | tr '\t' ' ';; esac
done | sort -u`)
}

// allThreads demands what /proc says of each thread of lazymig's processes with this subcommand.
func (r *rig) allThreads(h *lab.Host, sub string, want ...string) {
	r.t.Helper()
	got := r.threads(h, sub)
	for _, w := range want {
		name, _, _ := strings.Cut(w, " ")
		if strings.Count(got, name) != 1 || !strings.Contains(got, w) {
			r.t.Errorf("%s: %q is not what all its threads have:\n%s", sub, w, got)
		}
	}
}

// TestPrivilegesAsked looks at those that are there before the handover.
func TestPrivilegesAsked(t *testing.T) {
	r := newHosts(t)
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=asked:" + gate})
	p := r.spawn(r.l.A, "/bin/sh", "-c", "while :; do :; done")
	g := r.begin(r.l.A, r.l.B, p.Pid)
	r.parked(ag)
	r.allThreads(r.l.A, "keeper", "NoNewPrivs: 1", "Seccomp: 2")
	r.allThreads(r.l.A, "warden", "NoNewPrivs: 1", "Seccomp: 2")
	r.allThreads(r.l.A, "source", "NoNewPrivs: 1", "Seccomp: 0") // CRIU, its child, puts off filters of the tree
	r.killSource()                                               // the keeper thaws, under its filter
	if m := g.wait(); m.code != 4 {
		t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.sh(r.l.B, "touch "+gate)
	r.eventually("the tree to run", func() bool { return strings.Contains(r.sh(r.l.A, fmt.Sprintf("cat /proc/%d/stat", p.Pid)), ") R ") })
	r.eventually("both sides to give up", func() bool {
		return slices.Equal(r.states(r.l.A), []string{"source aborted"}) && slices.Equal(r.states(r.l.B), []string{"target aborted"})
	})
	r.clean()
}

// TestStarterKilled kills the process that starts others for the agent: the agent says so and ends with it, and the next goes on.
func TestStarterKilled(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=drain:" + gate})
	ch := r.checker(r.l.A, 64, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	r.sh(r.l.B, "pkill -KILL -f 'lazymig [s]tarter'")
	if err := ag.cmd.Wait(); err == nil || !strings.Contains(ag.log.String(), "the process that starts others for it has died") {
		t.Errorf("the agent ends with %v: %s", err, ag.log)
	}
	ag = r.agent(r.l.B)
	r.eventually("next agent to take the migration up", func() bool { return strings.Contains(ag.log.String(), "migration is taken up") })
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s\n%s", m.code, m.stderr, r.sh(r.l.A, "tail -n 40 /var/lib/lazymig/*.log"))
	}
	r.goesOn(r.l.A, ch.status)
	ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
	r.clean()
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
		{r.l.B, "agent", []string{"NoNewPrivs: 1", "Seccomp: 2", "CapEff: 000000000000043f", "CapBnd: 000000000000043f"}},
		{r.l.B, "starter", []string{"NoNewPrivs: 0", "Seccomp: 0"}},
		{r.l.B, "fuse-daemon", []string{"NoNewPrivs: 1", "Seccomp: 2", "CapEff: 0000000088a0401f", "CapBnd: 0000000088a0401f"}},
		{r.l.B, "fuse-keeper", []string{"NoNewPrivs: 1", "Seccomp: 2", "CapEff: 0000000088a0401f"}},
		{r.l.B, "carrier", []string{"NoNewPrivs: 1", "Seccomp: 2", "CapEff: 0000000000000006"}},
		{r.l.A, "source", []string{"NoNewPrivs: 1", "Seccomp: 2"}},
		{r.l.A, "warden", []string{"NoNewPrivs: 1", "Seccomp: 2"}},
	} {
		r.allThreads(p.host, p.sub, p.want...)
	}
	if got := r.sh(r.l.B, fmt.Sprintf("cat /proc/%d/task/*/status | grep -E '^(NoNewPrivs|Seccomp):' | tr '\\t' ' ' | sort -u", pid)); got != "NoNewPrivs: 0\nSeccomp: 0" {
		t.Errorf("the tree has %q", got)
	}
	s.goesOn()
	s.end()
	r.sourceEnds()
	r.clean()
}
