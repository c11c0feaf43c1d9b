package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// raw are a migration's events as a program reads them.
func (g *migration) raw() (all []map[string]any) {
	t := g.r.t
	t.Helper()
	for line := range strings.Lines(g.out.String()) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("event %q: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

// one is the first event of a kind, with the fields that it must have.
func one(t *testing.T, all []map[string]any, kind string, fields ...string) map[string]any {
	t.Helper()
	i := slices.IndexFunc(all, func(e map[string]any) bool { return e["event"] == kind })
	if i < 0 {
		t.Fatalf("no %s among %v", kind, all)
	}
	for _, f := range append([]string{"time", "id", "pid"}, fields...) {
		if _, ok := all[i][f]; !ok {
			t.Errorf("%s has no %s: %v", kind, f, all[i])
		}
	}
	return all[i]
}

// above holds figures of an event to what is plausible: more than 0 and at most that.
func above(t *testing.T, e map[string]any, limits map[string]float64) {
	t.Helper()
	for f, most := range limits {
		if v, ok := e[f].(float64); !ok || v <= 0 || v > most {
			t.Errorf("%v: %s is %v, at most %v is plausible", e["event"], f, e[f], most)
		}
	}
}

// TestEvents: what --json prints of a migration, of a tree that ends before it is there, and of a failure.
func TestEvents(t *testing.T) {
	r := newHosts(t, "checker")
	a, b := r.l.A, r.l.B
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=drain:" + gate})
	r.sh(b, "touch "+gate)
	const size, pause = 64 << 20, 60_000
	ch := r.checker(a, size>>20, 2)
	g := r.begin(a, b, ch.proc.Pid, "--bwlimit", "50M")
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	all := g.raw()
	kinds := []string{"prepared", "frozen", "resumed", "progress", "drained", "done"}
	var order []string
	for _, e := range all {
		if kind := e["event"].(string); slices.Contains(kinds, kind) && !slices.Contains(order, kind) {
			order = append(order, kind)
		}
		if e["id"] != all[0]["id"] || e["pid"] != float64(ch.proc.Pid) {
			t.Errorf("of another migration: %v", e)
		}
	}
	if !slices.Equal(order, kinds) || all[len(all)-1]["event"] != "done" {
		t.Errorf("events in this order: %q", order)
	}
	one(t, all, "frozen")
	down := map[string]float64{"target_pid": 1 << 22, "downtime_ms": pause}
	resumed := one(t, all, "resumed", "target_pid", "downtime_ms")
	above(t, resumed, down)
	above(t, one(t, all, "progress", "left_bytes", "bytes_sent"), map[string]float64{"left_bytes": 2 * size, "bytes_sent": 2 * size})
	done := one(t, all, "done", "faults", "fault_p50_us", "fault_p99_us")
	above(t, done, map[string]float64{
		"target_pid": 1 << 22, "downtime_ms": pause, "dump_ms": pause, "transfer_ms": pause, "restore_ms": pause, "drain_ms": pause,
		"memory_bytes": 2 * size, "bytes_sent": 3 * size, "faults": size / 4096, "fault_p50_us": pause * 1000, "fault_p99_us": pause * 1000, "files_forwarded": 1000,
	})
	if done["memory_bytes"].(float64) < size || done["fault_p50_us"].(float64) > done["fault_p99_us"].(float64) {
		t.Errorf("done: %v", done)
	}
	for f := range down {
		if done[f] != resumed[f] {
			t.Errorf("%s: %v when resumed, %v when done", f, resumed[f], done[f])
		}
	}
	pid := int(done["target_pid"].(float64))
	if comm := r.sh(b, fmt.Sprintf("cat /proc/%d/comm", pid)); comm != "checker" {
		t.Errorf("target_pid is %s", comm)
	}
	ch.verdict(a, b, pid)

	ch = r.checker(a, size>>20, 2)
	r.sh(b, "rm "+gate)
	said := len(ag.log.String())
	g = r.begin(a, b, ch.proc.Pid)
	r.eventually("agent to be parked", func() bool { return strings.Contains(ag.log.String()[said:], `"parked"`) })
	// The agent hears of the end when it goes on, and of nothing before that: a tree without processes is drained, too.
	r.sh(b, "pkill -KILL -x checker")
	r.eventually("end of the guardian", func() bool { return r.sh(b, "pgrep -f 'lazymig [g]uardian'; true") == "" })
	r.sh(b, "touch "+gate)
	m = g.wait()
	if exited := one(t, g.raw(), "exited", "status"); m.code != 0 || exited["status"] != float64(syscall.SIGKILL) {
		t.Errorf("code %d, %v", m.code, exited)
	}

	q := r.spawn(a, "/bin/sleep", "1000")
	r.via = b.Addr + ":1" // nobody listens
	g = r.begin(a, b, q.Pid)
	m = g.wait()
	failed := one(t, g.raw(), "failed", "stage", "error", "source_state")
	if m.code != 4 || failed["stage"] != "prepare" || failed["source_state"] != "running" || !strings.Contains(fmt.Sprint(failed["error"]), "refused") {
		t.Errorf("code %d, %v", m.code, failed)
	}
	r.clean()
}
