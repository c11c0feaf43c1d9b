package e2e

import (
	"strconv"
	"strings"
	"testing"
)

// wardens are the PIDs of A's wardens, the oldest first: that one is in use.
func (r *rig) wardens() []string {
	r.t.Helper()
	return strings.Fields(r.sh(r.l.A, "pgrep -f 'lazymig [w]arden'; true"))
}

// TestWardenKilled kills the warden when all memory is on the target: a spare one takes its place and gets all that the other had, files without a name included. When
// the source's process is killed then, too, it starts another, which serves on.
func TestWardenKilled(t *testing.T) {
	r := newRig(t)
	p := r.unlinked()
	pid, _ := r.move(r.l.A, r.l.B, p.Pid)
	for n := range 3 {
		var was []string
		r.eventually("a warden and a spare one", func() bool { was = r.wardens(); return len(was) == 2 })
		if n == 1 { // the spare one
			r.sh(r.l.A, "kill -KILL "+was[1])
			r.eventually("another spare one", func() bool { now := r.wardens(); return len(now) == 2 && now[0] == was[0] && now[1] != was[1] })
			continue
		}
		r.sh(r.l.A, "kill -KILL "+was[0])
		r.eventually("the spare one to take its place", func() bool {
			now := r.wardens()
			return len(now) == 2 && now[0] == was[1] && strings.Count(r.sh(r.l.A, "cat /var/lib/lazymig/*.log"), "another takes its place") == n/2+1
		})
	}
	r.killSource()
	r.eventually("another source's process", func() bool { return strings.Contains(r.sh(r.l.A, "cat /var/lib/lazymig/*.log"), "is taken up") })
	r.sh(r.l.B, "kill -USR1 "+strconv.Itoa(pid))
	r.says(r.l.A, "verdict", "cat /srv/u/verdict", "OK")
	r.end(r.l.B, pid, "KILL")
	r.sourceEnds()
	r.clean()
}

// TestWardenKilledAsked kills the warden before the handover: it is followed by another that is of use after it.
func TestWardenKilledAsked(t *testing.T) {
	r := newHosts(t)
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=asked:" + gate})
	p := r.unlinked()
	g := r.begin(r.l.A, r.l.B, p.Pid)
	r.parked(ag)
	was := r.wardens()
	r.sh(r.l.A, "kill -KILL "+was[0])
	r.eventually("another warden", func() bool { now := r.wardens(); return len(now) == 2 && now[0] != was[0] })
	r.sh(r.l.B, "touch "+gate)
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.killSource()
	pid := m.get("resumed").TargetPID
	r.sh(r.l.B, "kill -USR1 "+strconv.Itoa(pid))
	r.says(r.l.A, "verdict", "cat /srv/u/verdict", "OK")
	r.end(r.l.B, pid, "KILL")
	r.sourceEnds()
	r.clean()
}

// TestWardenKilledStreams: what standard streams had under way is lost with the warden that carried them, so nothing comes after it: the tree's next byte is refused.
func TestWardenKilledStreams(t *testing.T) {
	r := newRig(t)
	r.spawn(r.l.A, "/bin/sh", "-c", `/usr/bin/python3 -c '
import os, time
os.makedirs("/srv/w")
try:
    while True:
        os.write(1, b"line\n")
        time.sleep(0.01)
except BrokenPipeError:
    open("/srv/w/verdict", "w").write("refused")
time.sleep(1000)' | cat >/srv/out`)
	r.eventually("lines", func() bool { return r.sh(r.l.A, "cat /srv/out 2>/dev/null; true") != "" })
	pid, err := strconv.Atoi(r.sh(r.l.A, "pgrep -x python3"))
	if err != nil {
		t.Fatal(err)
	}
	pid, _ = r.move(r.l.A, r.l.B, pid)
	r.sh(r.l.A, "kill -KILL "+r.wardens()[0])
	r.says(r.l.A, "the tree to be told", "cat /srv/w/verdict", "refused")
	r.end(r.l.B, pid, "KILL")
	r.sourceEnds()
	r.clean()
}
