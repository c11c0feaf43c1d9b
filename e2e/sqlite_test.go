package e2e

import (
	"fmt"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/lab"
)

// TestSQLite moves SQLite databases under load and detaches them. SQLite knows a database by device and inode number, which are others then:
// connections made before and after must know of each other all the same.
func TestSQLite(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.spawn(a, "/usr/bin/python3", r.script("sqlite.py"), "/srv/db")
	r.says(a, "databases to be used", "cat /srv/db/verdict", "OK")
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	r.strand(b)
	r.alone(b, pid)
	check := func(h *lab.Host, dir string) {
		t.Helper()
		r.sh(h, fmt.Sprintf("echo asked >%s/verdict; kill -USR1 %d", dir, pid))
		var out string
		defer func() {
			if t.Failed() {
				t.Logf("python3's trace: %s", r.sh(h, "cat "+dir+"/trace"))
			}
		}()
		r.eventually("verdict", func() bool { out = r.sh(h, "cat "+dir+"/verdict"); return out != "asked" })
		if out != "OK" {
			t.Errorf("SQLite on %s: %s", h.Name, out)
		}
	}
	check(b, root+"/srv/db")
	check(b, root+"/srv/db")
	r.sh(b, fmt.Sprintf("kill -KILL -%d", pid)) // and its children
	r.over(b)
}
