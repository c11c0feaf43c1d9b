package e2e

import (
	"fmt"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestFuseDaemonKilledWhileHeld kills it while the tree is held and its grant is asked for: the source may have granted already, so nothing may be lost.
func TestFuseDaemonKilledWhileHeld(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=asked:" + gate})
	ch := r.checker(r.l.A, 16, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	r.sh(r.l.B, "pkill -KILL -f 'lazymig [f]use-daemon'; touch "+gate)
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.goesOn(r.l.A, ch.status)
	ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
	r.clean()
}

// TestFuseDaemonKilled kills the process that serves the tree's files 10 times, and its keeper in between, below two processes that use files of all
// kinds: they wait, see no error, and nothing is done twice. Then without an agent.
func TestFuseDaemonKilled(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newHosts(t)
	a, b := r.l.A, r.l.B
	ag := r.agent(b)
	p := r.spawn(a, "/usr/bin/python3", r.script("writer.py"), "/srv/w")
	r.goesOn(a, "/srv/w/status")
	pid, _ := r.move(a, b, p.Pid)
	defer func() {
		if t.Failed() {
			t.Logf("traces: %s", r.sh(a, "cat /srv/w/status /srv/w/trace.*; true"))
		}
	}()
	r.goesOn(a, "/srv/w/status")
	for i := range 10 {
		who := "daemon"
		if i%4 == 2 {
			who = "keeper"
		}
		r.sh(b, fmt.Sprintf("pkill -KILL -f 'lazymig [f]use-%s'", who))
		r.goesOn(a, "/srv/w/status")
	}
	// The keeper does it without an agent, too, and the next agent brings the connection.
	r.sh(b, "pkill -KILL -f 'lazymig [a]gent'; pkill -KILL -f 'lazymig [f]use-daemon'")
	_ = ag.cmd.Wait() // killed
	r.agent(b)
	r.goesOn(a, "/srv/w/status")
	r.sh(b, "pkill -KILL -f 'lazymig [f]use-keeper'") // which is not the child of this agent
	r.goesOn(a, "/srv/w/status")
	r.ended(a, b, pid, "/srv/w/status")
	r.clean()
}
