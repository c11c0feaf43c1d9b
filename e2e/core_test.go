package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// TestCore has processes dump core while their memory is missing: the dumps are told to be not whole, of the root and of one that its parent reaps.
func TestCore(t *testing.T) {
	r := newHosts(t, "core")
	a, b := r.l.A, r.l.B
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=drain:" + gate})
	p := r.spawn(a, "/bin/sh", "-c", "mkdir /srv/core; exec "+r.dir+"/core /srv/core")
	r.says(a, "tree to be ready", "test -s /srv/core/child; echo $?", "0")
	in := r.sh(a, "cat /srv/core/child")
	g := r.begin(a, b, p.Pid)
	r.parked(ag)
	root := r.sh(b, "pgrep -o -x core")
	r.sh(b, "pkill -ABRT -x core -P "+root)
	r.says(a, "child to end", "cat /srv/core/status", "134")
	n, err := strconv.Atoi(root)
	if err != nil {
		t.Fatal(err)
	}
	r.end(b, n, "ABRT")
	if out := r.sh(a, "ls /srv/core"); !strings.Contains(out, "core") {
		t.Fatalf("no core: %s", out)
	}
	r.sh(b, "touch "+gate)
	m := g.wait()
	notes := ""
	for _, e := range m.events {
		notes += e.Text + "\n"
	}
	for _, pid := range []string{in, fmt.Sprint(p.Pid)} {
		want := "the core that process " + pid + " has dumped (aborted) is not whole"
		if strings.Count(notes, want) != 1 {
			t.Errorf("%q is not told once: %s", want, notes)
		}
		for _, h := range []string{r.sh(a, r.lazymig+" list"), r.sh(b, r.lazymig+" list")} {
			if !strings.Contains(h, want) {
				t.Errorf("%q is not in the record: %s", want, h)
			}
		}
	}
	r.clean()
}
