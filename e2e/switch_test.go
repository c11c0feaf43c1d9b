package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// switching begins to detach a checker whose agent, or the process of the switch, is parked at a point of it.
func (r *rig) switching(point string) (*agent, *migration) {
	r.t.Helper()
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_DEBUG=1", "LAZYMIG_PARK=" + point + ":" + gate})
	r.sh(r.l.A, "mkdir /srv/bin; cp "+r.dir+"/checker /srv/bin")
	p := r.spawn(r.l.A, "/srv/bin/checker", "16", "2", "/srv/status")
	r.eventually("checker to check", func() bool { w, _ := r.status(r.l.A, "/srv/status"); return w == "run" })
	g := r.begin(r.l.A, r.l.B, p.Pid, append(r.locals(r.l.A, r.l.B), "--until", "detached")...)
	r.parked(ag)
	return ag, g
}

// detached demands that the migration ends there, and that the tree goes on and is right.
func (r *rig) detached(g *migration) {
	r.t.Helper()
	m := g.wait()
	if m.code != 0 {
		r.t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	pid := m.get("resumed").TargetPID
	status := "/var/lib/lazymig/" + m.get("resumed").ID + ".target/root/srv/status"
	if out := r.sh(r.l.B, fmt.Sprintf("p=$(awk '/^PPid/{print $2}' /proc/%d/status); cat /proc/$p/comm; ls /proc/$p/fd", pid)); out != "init" {
		r.t.Errorf("the parent of the tree, and its descriptors: %q", out)
	}
	if s := r.states(r.l.B); len(s) != 1 || s[0] != "target detached" {
		r.t.Errorf("records of B: %q", s)
	}
	r.goesOn(r.l.B, status)
	r.ended(r.l.B, r.l.B, pid, status)
	r.clean()
}

// TestSwitchAgentKilled kills the agent while the tree is put on its files, and when that is done and not recorded: it is, and the next agent finds so.
func TestSwitchAgentKilled(t *testing.T) {
	for _, point := range []string{"switch-stopped", "switch-commit", "left"} {
		t.Run(point, func(t *testing.T) {
			r := newHosts(t, "checker")
			ag, g := r.switching(point)
			r.killAgent(ag)
			r.sh(r.l.B, "touch "+gate)
			r.agent(r.l.B)
			r.detached(g)
		})
	}
}

// TestSwitchAgentComesEarly starts the next agent while the switch whose agent was killed is still at work: it takes the migration up as soon as that is over.
func TestSwitchAgentComesEarly(t *testing.T) {
	r := newHosts(t, "checker")
	ag, g := r.switching("switch-stopped")
	r.killAgent(ag)
	ag = r.agent(r.l.B)
	r.eventually("next agent to meet the switch", func() bool { return strings.Contains(ag.log.String(), "migration waits") })
	r.sh(r.l.B, "touch "+gate)
	r.detached(g)
}

// TestFilesWithoutLane kills the agent and the FUSE daemon while the source is away. The next agent wants files to come from a daemon that has no connection:
// that waits for one, and is there when it comes, however late.
func TestFilesWithoutLane(t *testing.T) {
	r := newHosts(t, "checker")
	ag, g := r.switching("files")
	r.sh(r.l.A, "pkill -STOP -f 'lazymig [s]ource'")
	r.sh(r.l.B, "pkill -KILL -f 'lazymig ([a]gent|[f]use-daemon)'")
	_ = ag.cmd.Wait() // killed
	r.agent(r.l.B)
	died := func() int { return strings.Count(ag.log.String(), "FUSE daemon has died") } // its keeper says so, whose log this is, too
	r.eventually("next agent to want files", func() bool {
		return strings.Contains(ag.log.String(), "waits for a files lane") || died() > 2
	})
	r.sh(r.l.A, "pkill -CONT -f 'lazymig [s]ource'")
	r.detached(g)
	if n := died(); n != 1 {
		t.Errorf("%d FUSE daemons have died", n)
	}
}

// TestSwitchKilled kills the process that puts the tree on its files: before it has changed anything the tree goes on, and another comes; then the tree dies
// as a whole.
func TestSwitchKilled(t *testing.T) {
	t.Run("settled", func(t *testing.T) {
		r := newHosts(t, "checker")
		_, g := r.switching("switch-settled")
		r.sh(r.l.B, "pkill -KILL -f 'lazymig [s]witch'; touch "+gate)
		r.detached(g)
	})
	t.Run("commit", func(t *testing.T) {
		r := newHosts(t, "checker")
		_, g := r.switching("switch-commit")
		r.sh(r.l.B, "pkill -KILL -f 'lazymig [s]witch'; touch "+gate)
		m := g.wait()
		t.Logf("migrate ended with %d: %s", m.code, m.stderr)
		if e := m.get("exited"); e == nil || e.Status == nil || *e.Status != 9 {
			t.Errorf("exited event: %+v", e)
		}
		r.clean()
		if a, b := r.states(r.l.A), r.states(r.l.B); !slices.Equal(a, []string{"source ended"}) || !slices.Equal(b, []string{"target ended"}) {
			t.Errorf("records: %q, %q", a, b)
		}
	})
}
