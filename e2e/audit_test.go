package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// audits are the audit lines of a log, each as its text and what it says under some keys.
func audits(t *testing.T, log string, keys ...string) (all []string) {
	t.Helper()
	for line := range strings.Lines(log) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) != nil || m["audit"] != true {
			continue // helpers log text
		}
		s := fmt.Sprint(m["msg"])
		for _, k := range keys {
			if v, ok := m[k]; ok {
				s += fmt.Sprint(" ", k, "=", v)
			}
		}
		all = append(all, s)
	}
	return all
}

// TestAudit: both sides' logs say who has moved what where, how it ended, and what was given up.
func TestAudit(t *testing.T) {
	r := newHosts(t)
	a, b := r.l.A, r.l.B
	ag := r.agent(b)
	p := r.spawn(a, "/bin/sh", "-c", "while :; do sleep 1; done")
	r.sourceEnv = []string{"LAZYMIG_PARK=frozen:" + gate}
	g := r.begin(a, b, p.Pid)
	r.eventually("source to be parked", func() bool { return strings.Contains(r.sh(a, "cat /var/lib/lazymig/*.log; true"), "parked") })
	r.sh(a, r.lazymig+" abort "+r.id()+"; touch "+gate)
	if m := g.wait(); m.code != 4 {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.sourceEnv = nil
	pid, _ := r.move(a, b, p.Pid)
	r.end(b, pid, "KILL")
	r.sourceEnds()
	to := b.Addr + ":" + agentPort
	got := audits(t, r.sh(a, "cat $(ls -tr /var/lib/lazymig/*.log)"), "to", "pid", "comm", "by", "tree", "status")
	want := []string{
		fmt.Sprintf("migration begins to=%s pid=%d comm=sh by=-1", to, p.Pid),
		fmt.Sprintf("migration given up to=%s pid=%d tree=running", to, p.Pid),
		fmt.Sprintf("migration begins to=%s pid=%d comm=sh by=-1", to, p.Pid),
		fmt.Sprintf("tree runs on the target to=%s pid=%d", to, p.Pid),
		fmt.Sprintf("tree has ended on the target to=%s pid=%d status=9", to, p.Pid),
	}
	if !slices.Equal(got, want) {
		t.Errorf("A says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r.eventually("agent to record the end", func() bool { return strings.Count(ag.log.String(), `"migration ends"`) == 2 })
	got = audits(t, ag.log.String(), "names", "from", "tree", "state", "pid")
	names := fmt.Sprintf("names=[%s %s]", a.Addr, b.Addr)
	begins, ends := "migration begins "+names+" from=lab-a tree=sh", "migration ends "+names+" state="
	want = []string{begins, ends + "aborted", begins, fmt.Sprintf("tree runs here %s from=lab-a tree=sh pid=%d", names, pid), ends + "ended"}
	if !slices.Equal(got, want) {
		t.Errorf("B says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r.clean()
}

// TestLogBounded: who has no certificate can't fill the agent's log, however often it tries.
func TestLogBounded(t *testing.T) {
	r := newHosts(t)
	ag := r.agent(r.l.B)
	began := time.Now()
	r.sh(r.l.A, `/usr/bin/python3 -c '
import socket
for i in range(600):
    s = socket.create_connection(("`+r.l.B.Addr+`", `+agentPort+`))
    s.sendall(b"x" * 64)
    try: s.recv(1)
    except ConnectionResetError: pass
    s.close()
'`)
	lines := strings.Count(ag.log.String(), "\n")
	if most := 100 + 10*int(time.Since(began).Seconds()); lines == 0 || lines > most {
		t.Errorf("600 connections made %d lines, not 1 to %d", lines, most)
	}
}
