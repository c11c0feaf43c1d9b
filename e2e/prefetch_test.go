package e2e

import (
	"strconv"
	"strings"
	"testing"
)

// TestPrefetch: while nothing is pushed, a process that walks or strides over its memory finds nine of ten pages there before it touches them.
func TestPrefetch(t *testing.T) {
	r := newHosts(t, "walker")
	a, b := r.l.A, r.l.B
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=drain:" + gate})
	p := r.spawn(a, r.dir+"/walker", "/srv/walked")
	result := func() []string { return strings.Fields(r.sh(a, "cat /srv/walked 2>/dev/null; true")) }
	r.eventually("walker to be ready", func() bool { return len(result()) == 1 })
	g := r.begin(a, b, p.Pid)
	r.parked(ag)
	r.sh(b, "kill -USR1 $(pgrep -x walker)")
	var f []string
	r.eventually("walker to walk", func() bool { f = result(); return len(f) == 9 })
	t.Log(f)
	for _, i := range []int{2, 5} {
		there, err1 := strconv.Atoi(f[i])
		missing, err2 := strconv.Atoi(f[i+1])
		if err1 != nil || err2 != nil || there < 9*missing {
			t.Errorf("%s: %d pages were there before the touch, %d were not", f[i-1], there, missing)
		}
	}
	if f[8] != "0" {
		t.Errorf("%s words were wrong", f[8])
	}
	r.sh(b, "touch "+gate)
	m := g.wait()
	e := m.get("resumed")
	if m.code != 0 || e == nil {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	if d := m.get("done"); d == nil || d.PrefetchHit < 600 || d.PrefetchHit > d.Prefetched {
		t.Errorf("done event: %+v", d)
	}
	r.end(b, e.TargetPID, "KILL")
	r.clean()
}
