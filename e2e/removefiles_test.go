package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"
)

const givenFiles = `mkdir -p /srv/data/sub && cd /srv/data && seq 10000 >a && seq 20000 >b && seq 30000 >sub/c && ln -s a link && ln a sub/a`

// TestRemoveSourceFiles takes a directory along and removes it from the source in the end. What somebody has changed there after the tree left it stays, and
// is named.
func TestRemoveSourceFiles(t *testing.T) {
	r := newHosts(t, "checker")
	a, b := r.l.A, r.l.B
	open := r.dir + "/gate"
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=switched:" + open})
	r.sh(a, givenFiles)
	sum := "cd %/srv/data && sha256sum a b sub/* && readlink link"
	want := r.sh(a, strings.ReplaceAll(sum, "%", ""))
	ch := r.checker(a, 16, 2)
	g := r.begin(a, b, ch.proc.Pid, append(r.locals(a, b), "--until", "detached", "--with", "/srv/data", "--remove-source-files")...)
	r.parked(ag)
	if got := r.sh(a, strings.ReplaceAll(sum, "%", "")); got != want {
		t.Errorf("something is removed before the end:\n%s", got)
	}
	r.sh(a, "echo more >>/srv/data/b && echo new >/srv/data/sub/new")
	if err := os.WriteFile(open, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := g.wait()
	d := m.get("detached")
	if m.code != 0 || d == nil {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	if left := r.sh(a, "cd /srv/data && find . | LC_ALL=C sort | tr '\\n' ' '"); left != ". ./b ./sub ./sub/new" {
		t.Errorf("left on the source: %s", left)
	}
	for _, p := range []string{"/srv/data/b: ", "/srv/data/sub: ", "/srv/data: "} {
		if !slices.ContainsFunc(d.Kept, func(k string) bool { return strings.HasPrefix(k, p) }) {
			t.Errorf("%q is not told among %q", p, d.Kept)
		}
	}
	if d.Removed != 4 || len(d.Kept) != 3 {
		t.Errorf("%d files removed, kept %q", d.Removed, d.Kept)
	}
	root := "/var/lib/lazymig/" + d.ID + ".target/root"
	if got := r.sh(b, strings.ReplaceAll(sum, "%", root)); got != want {
		t.Errorf("on B:\n%s\non A it was:\n%s", got, want)
	}
	r.ended(b, b, m.get("resumed").TargetPID, root+ch.status)
	r.clean()
}
