package e2e

import (
	"fmt"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestFuseDaemonKilled kills the process that serves the tree's files 10 times, and its keeper in between, below two processes that use files of all
// kinds: they wait, see no error, and nothing is done twice.
func TestFuseDaemonKilled(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newRig(t)
	a, b := r.l.A, r.l.B
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
	r.ended(a, b, pid, "/srv/w/status")
	r.clean()
}
