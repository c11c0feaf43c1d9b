package e2e

import (
	"fmt"
	"testing"
)

// TestStop moves a tree that is not let go before all of its memory is there, shared memory too: when it runs, the source's is not needed any more.
func TestStop(t *testing.T) {
	r := newHosts(t, "churn")
	a, b := r.l.A, r.l.B
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=drain:" + gate})
	p := r.spawn(a, r.dir+"/churn", "128", "/srv/status")
	r.goesOn(a, "/srv/status")
	pid, m := r.move(a, b, p.Pid, "--mode", "stop", "--until", "resumed")
	r.parked(ag) // the agent pushes nothing after the resume
	if e := m.get("resumed"); e.FillMS <= 0 || e.FillMS > e.DowntimeMS {
		t.Errorf("resumed event: %+v", e)
	}
	r.goesOn(a, "/srv/status")
	if out := r.sh(b, fmt.Sprintf("grep -c '^VmFlags:.* um' /proc/%d/smaps; true", pid)); out != "0" {
		t.Errorf("%s mappings still wait for pages", out)
	}
	if s := r.states(a); len(s) != 1 || s[0] != "source resumed" {
		t.Errorf("records of A: %q", s)
	}
	r.sh(b, "touch "+gate)
	r.eventually("the source to hear that all is there", func() bool { return r.states(a)[0] == "source drained" })
	r.ended(a, b, pid, "/srv/status")
	r.clean()
}
