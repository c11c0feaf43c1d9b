package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestMountNamespace moves a program of a mount namespace that is not lazymig's, with its executable and working directory where only that namespace
// has them. With a file from before that namespace it is refused, untouched.
func TestMountNamespace(t *testing.T) {
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	run := func(dir, streams string) *checker {
		ch := &checker{r: r, status: dir + ".status"}
		ch.proc = r.spawn(a, "/usr/bin/unshare", "-m", "/bin/sh", "-c",
			"mkdir $0 && mount -t tmpfs own $0 && cp "+r.dir+"/checker $0 && cd $0 && exec ./checker 64 2 $0.status "+streams, dir)
		r.eventually("checker to check", func() bool { w, _ := r.status(a, ch.status); return w == "run" })
		if out := r.sh(a, "ls "+dir); out != "" {
			t.Fatalf("lazymig sees the program's mount: %s", out)
		}
		return ch
	}
	ch := run("/srv/from", ">/dev/null 2>&1")
	if m := r.try(a, b, ch.proc.Pid); m.code != 3 || m.get("frozen") != nil || !strings.Contains(m.stderr, "descriptor 0 of checker is /dev/null, opened by a mount that is not in its mount namespace") {
		t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.goesOn(a, ch.status)
	ch.verdict(a, a, ch.proc.Pid)

	ch = run("/srv/own", "</dev/null >/dev/null 2>&1")
	pid, _ := r.move(a, b, ch.proc.Pid)
	r.goesOn(a, ch.status)
	if out := r.sh(b, fmt.Sprintf("readlink /proc/%d/exe /proc/%[1]d/cwd; cmp /proc/%[1]d/exe %s/checker && echo same", pid, r.dir)); out != "/srv/own/checker\n/srv/own\nsame" {
		t.Errorf("on B it has %q", out)
	}
	ch.verdict(a, b, pid)
	r.clean()
}
