package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/lab"
)

// TestStatus asks how a tree stands while its files come and when they are there, down to "none".
func TestStatus(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newHosts(t)
	a, b := r.l.A, r.l.B
	gate := r.dir + "/gate"
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=detach:" + gate})
	p := r.spawn(a, "/usr/bin/python3", "-c", `
import os, time
os.makedirs("/srv/app")
f = open("/srv/app/open", "w+")
f.write("open")
f.flush()
open("/srv/app/beside", "w").write("beside")
open("/srv/ready", "w")
time.sleep(1000)`)
	r.eventually("python3 to be ready", func() bool { return r.sh(a, "ls /srv/ready 2>/dev/null; true") != "" })
	g := r.begin(a, b, p.Pid, append(r.locals(a, b), "--until", "detached")...)
	r.eventually("agent to park", func() bool { return strings.Contains(ag.log.String(), "parked") })
	id := strings.Fields(r.sh(b, r.lazymig+" list"))[0]
	type status struct {
		State    string
		Residual []string
		Files    struct {
			Here, Forwarded, Partly, Detached int
			Files                             []struct{ Path, State string }
		}
	}
	read := func(h *lab.Host) (s status, text string) {
		t.Helper()
		if err := json.Unmarshal([]byte(r.sh(h, r.lazymig+" status --json "+id)), &s); err != nil {
			t.Fatal(err)
		}
		return s, r.sh(h, r.lazymig+" status "+id)
	}
	states := func(s status) map[string]string {
		m := map[string]string{}
		for _, f := range s.Files.Files {
			m[f.Path] = f.State
		}
		return m
	}
	var s status
	var text string
	s, text = read(b)
	here := states(s)
	if s.State != "drained" || len(s.Residual) != 1 || !strings.HasPrefix(s.Residual[0], "files (") || !strings.Contains(text, "residual dependency: "+s.Residual[0]) {
		t.Errorf("before the switch: %+v\n%s", s, text)
	}
	for _, p := range []string{"/srv/app/open", "/srv/app/beside"} {
		if f := here[p]; f != "here" && f != "partly" && f != "forwarded" {
			t.Errorf("before the switch %s is %q", p, f)
		}
	}
	if s, text := read(a); s.State != "drained" || len(s.Residual) != 1 || s.Residual[0] != "files" {
		t.Errorf("before the switch, on the source: %+v\n%s", s, text)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := g.wait()
	if m.code != 0 || m.get("detached") == nil {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	s, text = read(b)
	if s.State != "detached" || s.Residual == nil || len(s.Residual) > 0 || s.Files.Detached != len(s.Files.Files) || s.Files.Here+s.Files.Partly+s.Files.Forwarded > 0 {
		t.Errorf("after the switch: %+v\n%s", s, text)
	}
	for _, p := range []string{"/srv/app/open", "/srv/app/beside"} {
		if f := states(s)[p]; f != "detached" || !strings.Contains(text, "detached   "+p) {
			t.Errorf("after the switch %s is %q", p, f)
		}
	}
	if !strings.Contains(text, "residual dependency: none") {
		t.Errorf("after the switch: %s", text)
	}
	if s, text := read(a); s.State != "detached" || s.Residual == nil || len(s.Residual) > 0 || !strings.Contains(text, "residual dependency: none") {
		t.Errorf("after the switch, on the source: %+v\n%s", s, text)
	}
	r.end(b, m.get("resumed").TargetPID, "KILL")
	r.clean()
}
