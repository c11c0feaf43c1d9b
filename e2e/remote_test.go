package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestRemote detaches a tree but for a directory that stays on the source. The agent is killed then, and the next one knows how it stands.
func TestRemote(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.spawn(a, "/usr/bin/python3", r.script("remote.py"))
	r.says(a, "python3 to be ready", "cat /srv/app/verdict", "OK 1, one file systems")
	if m := r.try(a, b, p.Pid, "--remote", "/srv/none", "--remote", "/proc/sys"); m.code != 3 || strings.Count(m.stderr, "is to stay here (--remote)") != 2 {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	pid, m := r.move(a, b, p.Pid, append(r.locals(a, b), "--until", "detached", "--remote", "/srv/far/")...)
	d := m.get("detached")
	if d == nil || len(d.Residual) != 1 || d.Residual[0] != "files below /srv/far (--remote)" {
		t.Fatalf("events %+v", m.events)
	}
	t.Logf("detached: %.1f ms, %.1f of them settling; %d descriptors, %d mappings, %d files", d.StopMS, d.SettleMS, d.Descriptors, d.Mappings, d.FilesMoved)
	root := "/var/lib/lazymig/" + d.ID + ".target/root"
	use := func(n int) {
		t.Helper()
		r.sh(b, fmt.Sprintf("kill -USR1 %d", pid))
		want := fmt.Sprintf("OK %d, two file systems", n)
		r.eventually("verdict", func() bool {
			return !strings.HasPrefix(r.sh(b, "cat "+root+"/srv/app/verdict"), fmt.Sprintf("OK %d,", n-1))
		})
		if v := r.sh(b, "cat "+root+"/srv/app/verdict"); v != want {
			t.Fatalf("python3 says: %s", v)
		}
		r.says(a, "what the child writes", "tail -n 1 /srv/far/in/child", "child")
		seq := r.sh(a, fmt.Sprintf("seq 1 %d", n))
		for where, got := range map[string]string{"log": r.sh(b, "cat "+root+"/srv/app/log"), "log in what stays": r.sh(a, "cat /srv/far/log"), "mapping": r.sh(a, fmt.Sprintf("od -An -tu1 -v -w1 -j1 -N%d /srv/far/map | tr -d ' '", n))} {
			if got != seq {
				t.Errorf("%s holds %q", where, got)
			}
		}
	}
	use(2)
	if got := r.sh(b, fmt.Sprintf("%s check --pid %d; echo $?", r.lazymig, pid)); !strings.Contains(got, "/srv/far, which python3 uses, has stayed on the host that it came from (--remote)") || !strings.HasSuffix(got, "\n3") {
		t.Errorf("to be moved on: %s", got)
	}
	if got := r.sh(a, "cat /srv/app/log"); got != "1" {
		t.Errorf("the source's log, which has moved, holds %q", got)
	}
	if got := r.sh(b, "ls "+root+"/srv/far"); got != "" {
		t.Errorf("what stays is on the target, too: %s", got)
	}
	left := r.sh(b, fmt.Sprintf(`for p in %d $(cat /proc/%d/task/*/children); do
	for f in /proc/$p/fd/* /proc/$p/exe /proc/$p/cwd /proc/$p/root /proc/$p/map_files/*; do case "$(stat -Lfc %%T $f 2>/dev/null)" in fuse*) readlink $f;; esac; done
	grep fuse.lazymig /proc/$p/mountinfo | cut -d' ' -f5; done | sort -u; true`, pid, pid))
	if want := "/srv/far\n/srv/far/gone (deleted)\n/srv/far/in\n/srv/far/log\n/srv/far/map"; left != want {
		t.Errorf("on FUSE are %q, want %q", left, want)
	}
	for _, h := range []struct {
		where, state string
	}{{"A", "source drained"}, {"B", "target drained"}} {
		host := map[string]string{"A": r.sh(a, r.lazymig+" status "+d.ID), "B": r.sh(b, r.lazymig+" status "+d.ID)}[h.where]
		if !strings.Contains(host, "residual dependency: files below /srv/far (--remote)") {
			t.Errorf("status on %s: %s", h.where, host)
		}
	}
	ag := r.agents[b]
	if err := ag.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = ag.cmd.Wait() // killed
	use(3)
	again := r.agent(b)
	r.eventually("the next agent to know what stays", func() bool { return strings.Contains(again.log.String(), "detached but for what stays") })
	use(4)
	// Whoever follows a FUSE daemon or a source that was killed must not begin anew what the tree lives on.
	r.sh(b, "pkill -KILL -f 'lazymig [f]use-daemon'")
	use(5)
	r.sh(a, "pkill -KILL -f 'lazymig [s]ource'")
	use(6)
	r.sh(b, fmt.Sprintf("kill -KILL $(cat /proc/%d/task/*/children)", pid))
	r.end(b, pid, "KILL")
	r.sourceEnds()
	r.clean()
	if s := r.sh(b, r.lazymig+" status "+d.ID); !strings.Contains(s, "files at "+root) {
		t.Errorf("status on B: %s", s)
	}
	if got := r.sh(b, "cat "+root+"/srv/app/log"); got != "1\n2\n3\n4\n5\n6" {
		t.Errorf("the log holds %q at the end", got)
	}
}
