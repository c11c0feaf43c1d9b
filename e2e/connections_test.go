package e2e

import (
	"strconv"
	"strings"
	"testing"
)

// TestConnections pushes memory over four connections, all of which are reset in the middle of it: each comes again, and no byte is wrong.
func TestConnections(t *testing.T) {
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	ch := r.checker(a, 40, 2)
	g := r.begin(a, b, ch.proc.Pid, "--connections", "4", "--bwlimit", "12M", "--compress", "none")
	all := func() bool { // control, files, urgent and four; a machine that is very slow may see the end first
		n, err := strconv.Atoi(r.sh(b, "ss -Htn state established '( sport = :"+agentPort+" )' | wc -l"))
		return err == nil && n >= 7 || strings.Contains(g.out.String(), `"event":"drained"`)
	}
	r.eventually("all connections", all)
	r.sh(a, "ss -K dst "+b.Addr+" >/dev/null")
	r.eventually("all connections once more", all)
	m := g.wait()
	e := m.get("resumed")
	if m.code != 0 || e == nil {
		t.Fatalf("migrate ended with %d: %s\n%s", m.code, m.stderr, r.sh(a, "tail -n 40 /var/lib/lazymig/*.log"))
	}
	r.goesOn(a, ch.status)
	ch.verdict(a, b, e.TargetPID)
	r.clean()
}
