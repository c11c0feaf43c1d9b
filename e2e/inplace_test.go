package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/lab"
)

// TestInPlace puts a tree's files at their own path on the target. What is there and differs is listed, and nothing happens; then it is replaced, after a switch that was
// killed when the files were in their place.
func TestInPlace(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newHosts(t)
	a, b := r.l.A, r.l.B
	gate := r.dir + "/gate"
	state := []string{"--state-dir", "/srv/state"} // on the file system of what is to be put in its place
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=placed:" + gate}, state...)
	p := r.spawn(a, "/usr/bin/python3", r.script("files.py"), "/srv/deep/er/app")
	const app = "/srv/deep/er/app"
	r.says(a, "python3 to be ready", "cat "+app+"/verdict", "ready")
	ask := func(h *lab.Host, pid int) {
		t.Helper()
		var out string
		r.sh(h, fmt.Sprintf("echo asked > %s/verdict; kill -USR1 %d", app, pid))
		r.eventually("verdict", func() bool { out = r.sh(h, "cat "+app+"/verdict"); return out != "asked" })
		if !strings.HasPrefix(out, "OK") {
			t.Fatalf("python3 says: %s", out)
		}
	}
	r.sh(a, "echo same >"+app+"/plugins/same; mkdir /srv/new; echo new >/srv/new/file; chmod 700 /srv/new")
	r.sh(b, "mkdir -p "+app+"/plugins; echo another >"+app+"/r0; echo extra >"+app+"/extra; echo same >"+app+"/plugins/same; chmod 755 "+app+" "+app+"/plugins")
	args := append(r.locals(a, b), "--until", "detached", "--in-place", "--with", app, "--with", "/srv/new")
	m := r.try(a, b, p.Pid, args...)
	for _, want := range []string{app + "/r0 has 8 bytes on the target", app + "/extra is on the target only"} {
		if m.code != 3 || !strings.Contains(m.stderr, want) || strings.Contains(m.stderr, "plugins/same") || m.get("frozen") != nil {
			t.Fatalf("migrate ended with %d, without %q: %s", m.code, want, m.stderr)
		}
	}
	if m := r.try(a, b, p.Pid, append(r.locals(a, b), "--in-place", "--with", "/run")...); m.code != 3 || !strings.Contains(m.stderr, "is on another file system than the agent's state directory") {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	ask(a, p.Pid)
	if got := r.sh(b, "cd "+app+"; cat r0 extra plugins/same; ls -A /srv"); got != "another\nextra\nsame\ndeep\nstate" {
		t.Errorf("on the target are %q", got)
	}

	g := r.begin(a, b, p.Pid, append(args, "--overwrite")...)
	r.eventually("agent to park", func() bool { return strings.Contains(ag.log.String(), "parked") })
	r.sh(b, "pkill -KILL -f 'lazymig [s]witch'")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m = g.wait()
	d := m.get("detached")
	if m.code != 0 || d == nil || !strings.Contains(ag.log.String(), "can't leave its source's files yet") {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	if got := strings.Join(d.Places, " "); got != app+" /srv/new" {
		t.Errorf("in place are %s", got)
	}
	pid := m.get("resumed").TargetPID
	r.strand(b)
	r.alone(b, pid)
	ask(b, pid)
	r.sh(b, "cmp "+app+"/plugins/same /srv/state/"+d.ID+".target/root"+app+"/plugins/same 2>/dev/null && exit 1; test ! -e "+app+"/extra")
	if got := r.sh(b, "cat /srv/new/file; stat -c %a /srv/new; ls -A /srv; ls -A /srv/state/"+d.ID+".target/root"+app); got != "new\n700\ndeep\nnew\nstate" {
		t.Errorf("on the target are %q", got)
	}
	if got := r.sh(b, fmt.Sprintf("cat /proc/%d/root/srv/new/file; stat -Lc %%i /proc/%d/cwd", pid, pid)); got != "new\n"+r.sh(b, "stat -c %i "+app) {
		t.Errorf("the process sees %q", got)
	}
	if s := r.sh(b, r.lazymig+" status "+strings.Join(state, " ")+" "+d.ID); !strings.Contains(s, "in place, at "+app+", /srv/new") {
		t.Errorf("status: %s", s)
	}
	r.end(b, pid, "KILL")
	r.agent(b, state...)
	r.clean()
}

// TestInPlaceDead kills agent and switch when the files are in their place and the tree is on half of them: it dies, and the next agent puts back what was there.
func TestInPlaceDead(t *testing.T) {
	r := newHosts(t)
	a, b := r.l.A, r.l.B
	state := []string{"--state-dir", "/srv/state"}
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=switch-commit:" + gate}, state...)
	p := r.spawn(a, "/bin/sh", "-c", "mkdir -p /srv/app; cd /srv/app; echo moved >data; exec 3<data; while :; do sleep 0.05; done")
	r.says(a, "shell to run", "cat /srv/app/data", "moved")
	r.sh(b, "mkdir /srv/app; echo own >/srv/app/data; echo own >/srv/app/only")
	g := r.begin(a, b, p.Pid, append(r.locals(a, b), "--until", "detached", "--in-place", "--overwrite", "--with", "/srv/app")...)
	r.parked(ag)
	r.says(b, "files to be in place", "cat /srv/app/data; ls /srv/app", "moved\ndata")
	r.killAgent(ag)
	r.sh(b, "pkill -KILL -f 'lazymig [s]witch'; touch "+gate)
	r.agent(b, state...)
	r.says(b, "files to be back", "cat /srv/app/*", "own\nown")
	m := g.wait()
	t.Logf("migrate ended with %d: %s", m.code, m.stderr)
	r.clean()
}

// TestInPlaceUsed puts what a tree uses in its place, though nobody has named it. A file of the target's own that differs keeps it where it is.
func TestInPlaceUsed(t *testing.T) {
	r := newHosts(t)
	a, b := r.l.A, r.l.B
	state := []string{"--state-dir", "/srv/state"}
	r.agent(b, state...)
	p := r.spawn(a, "/bin/sh", "-c", "mkdir -p /srv/deep/app /srv/lib; echo lib >/srv/lib/table; cd /srv/deep/app; exec 3</srv/lib/table 4>log; echo moved >data; n=0; while :; do n=$((n+1)); echo $n >&4; echo $n >step.new; mv step.new step; sleep 0.05; done")
	r.says(a, "shell to run", "cat /srv/deep/app/data", "moved")
	r.sh(b, "mkdir -p /srv/lib; echo another >/srv/lib/table")
	args := append(r.locals(a, b), "--until", "detached", "--in-place")
	if m := r.try(a, b, p.Pid, args...); m.code != 3 || !strings.Contains(m.stderr, "/srv/lib/table has 8 bytes on the target, and 4 here") || m.get("frozen") != nil {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.sh(b, "rm /srv/lib/table; echo own >/srv/lib/own")
	m := r.try(a, b, p.Pid, args...)
	d := m.get("detached")
	if m.code != 0 || d == nil {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	if got := strings.Join(d.Places, " "); got != "/srv/deep /srv/lib/table" || len(d.Aside) > 0 {
		t.Errorf("in place are %s, aside %v", got, d.Aside)
	}
	pid := m.get("resumed").TargetPID
	r.strand(b)
	r.alone(b, pid)
	if got, want := r.sh(b, fmt.Sprintf("stat -Lc %%d:%%i /proc/%d/cwd /proc/%[1]d/fd/3 /proc/%[1]d/fd/4", pid)), r.sh(b, "stat -c %d:%i /srv/deep/app /srv/lib/table /srv/deep/app/log"); got != want {
		t.Errorf("the tree uses %q, in place are %q", got, want)
	}
	step := r.sh(b, "cat /srv/deep/app/step")
	r.eventually("the next step, in its place", func() bool { s := r.sh(b, "cat /srv/deep/app/step"); return s != "" && s != step })
	if got := r.sh(b, "cat /srv/lib/own /srv/deep/app/data"); got != "own\nmoved" {
		t.Errorf("on the target are %q", got)
	}
	r.end(b, pid, "KILL")
	r.agent(b, state...)
	r.clean()
}
