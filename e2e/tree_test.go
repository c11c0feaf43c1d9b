package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// status is the line that checker and churn write: word, rounds, …, wrong.
func (r *rig) status(h *lab.Host, path string) (word string, f []int) {
	out := strings.Fields(r.sh(h, "cat "+path+" 2>/dev/null; true"))
	if len(out) != 5 {
		return strings.Join(out, " "), nil
	}
	for _, s := range out[1:] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return "", nil
		}
		f = append(f, n)
	}
	return out[0], f
}

// goesOn waits until a program's rounds have grown.
func (r *rig) goesOn(h *lab.Host, path string) {
	r.t.Helper()
	_, before := r.status(h, path)
	r.eventually(path+" to go on", func() bool {
		w, f := r.status(h, path)
		if strings.HasPrefix(w, "FAIL") {
			r.t.Fatalf("program says %q", w)
		}
		return f != nil && (before == nil || f[0] > before[0]+200)
	})
}

// ended ends a program and demands that it saw no wrong byte.
func (r *rig) ended(home, on *lab.Host, pid int, path string) {
	r.t.Helper()
	r.end(on, pid, "TERM")
	if w, f := r.status(home, path); w != "OK" || f[3] != 0 {
		r.t.Fatalf("%s ended with %s %v", path, w, f)
	}
}

// TestChurn moves a tree that forks, moves, drops, unmaps and maps memory while it drains.
func TestChurn(t *testing.T) {
	r := newRig(t, "churn")
	a, b := r.l.A, r.l.B
	p := r.spawn(a, r.dir+"/churn", "256", "/srv/status")
	r.goesOn(a, "/srv/status")
	pid, _ := r.move(a, b, p.Pid)
	r.goesOn(a, "/srv/status")
	r.ended(a, b, pid, "/srv/status")
	r.clean()
}

// waitKilling waits for the migration's end while the process that brings pages to h is killed again and again. It returns how often that was
// before the end.
func (g *migration) waitKilling(h *lab.Host, kills int) (m *moved, during int) {
	r := g.r
	r.t.Helper()
	killer := h.Command(r.ctx, "/bin/sh", "-c", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do pkill -KILL -f 'lazymig [h]andler' && i=$((i+1)) && echo killed; sleep 0.05; done`, kills))
	var said logBuffer
	killer.Stdout = &said
	if err := killer.Start(); err != nil {
		r.t.Fatal(err)
	}
	m = g.wait()
	during = strings.Count(said.String(), "killed")
	if err := killer.Wait(); err != nil {
		r.t.Fatal(err)
	}
	if m.code != 0 {
		r.t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	return m, during
}

// TestHandlerKilled kills the process that brings pages 100 times while a churning tree drains over a slow link: it waits, and goes on, and no
// byte is wrong.
func TestHandlerKilled(t *testing.T) {
	const kills = 100
	r := newRig(t, "churn")
	a, b := r.l.A, r.l.B
	p := r.spawn(a, r.dir+"/churn", "256", "/srv/status")
	r.goesOn(a, "/srv/status")
	r.sh(a, "tc qdisc add dev eth0 root tbf rate 100mbit burst 256k latency 100ms")
	g := r.begin(a, b, p.Pid)
	m, during := g.waitKilling(b, kills)
	t.Logf("%d kills, %d of them before all memory was there", kills, during)
	if during < kills/4 {
		t.Errorf("only %d kills before all memory was there", during)
	}
	r.goesOn(a, "/srv/status")
	r.ended(a, b, m.get("resumed").TargetPID, "/srv/status")
	r.clean()
}

// TestRoundTrip moves a process there and back again.
func TestRoundTrip(t *testing.T) {
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	r.agent(a)
	ch := r.checker(a, 64, 2)
	pid, _ := r.move(a, b, ch.proc.Pid)
	r.goesOn(a, ch.status)
	back, _ := r.move(b, a, pid)
	r.goesOn(a, ch.status)
	ch.verdict(a, a, back)
	r.clean()
}

// TestTwoAtOnce moves two trees at the same time.
func TestTwoAtOnce(t *testing.T) {
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	var procs [2]*lab.Proc
	path := func(i int) string { return fmt.Sprintf("/srv/status%d", i) }
	for i := range procs {
		procs[i] = r.spawn(a, r.dir+"/checker", "96", "2", path(i))
	}
	for i := range procs {
		r.goesOn(a, path(i))
	}
	var wg sync.WaitGroup
	var got [2]*moved
	for i := range procs {
		wg.Go(func() { got[i] = r.try(a, b, procs[i].Pid) })
	}
	wg.Wait()
	for i, m := range got {
		if m.code != 0 {
			t.Fatalf("migration %d ended with %d: %s", i, m.code, m.stderr)
		}
		r.goesOn(a, path(i))
		r.ended(a, b, m.get("resumed").TargetPID, path(i))
	}
	r.clean()
}
