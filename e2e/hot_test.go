package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestHotFirst: the pages that a process has used are found while it runs, and pushed before all others. It touches nothing any more when it is
// frozen, so that nothing but the push brings pages.
func TestHotFirst(t *testing.T) {
	r := newHosts(t, "hotset")
	a, b := r.l.A, r.l.B
	ag := r.agentWith(b, nil)
	r.sourceEnv = []string{"LAZYMIG_PARK=hot:" + gate}
	p := r.spawn(a, r.dir+"/hotset", "256", "/srv/status")
	says := func(word string) {
		t.Helper()
		r.eventually("the process to say "+word, func() bool { return strings.Contains(r.sh(a, "cat /srv/status 2>/dev/null; true"), word) })
	}
	says("ready")
	var pages uint64
	if _, err := fmt.Sscanf(r.sh(a, "cat /srv/status"), "ready %d", &pages); err != nil {
		t.Fatal(err)
	}
	g := r.begin(a, b, p.Pid, "--hot", "bpf")
	r.eventually("hot pages to be found", func() bool { return r.sh(a, "grep -ch '\"parked\"' /var/lib/lazymig/*.log; true") == "1" })
	r.sh(a, fmt.Sprintf("kill -USR1 %d", p.Pid))
	says("quiet")
	r.sh(a, "touch "+gate)
	m := g.wait()
	d := m.get("done")
	if m.code != 0 || d == nil {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	if n := m.get("notice"); d.Hot == "off" && n != nil {
		t.Skip("this kernel does not tell:", n.Text)
	}
	t.Logf("%s: %d of %d pages in use are found, %d pushed first; %d faults", d.Hot, d.HotBytes>>12, pages, d.HotFirst>>12, d.Faults)
	// Those between two come along, if they are few. Found are also pages of stacks, libraries' data and the heap, which come early, not by the push.
	if found := d.HotBytes >> 12; d.Hot != "bpf" || found < pages*9/10 || found > pages*11/10 || d.HotFirst>>12 < pages*9/10 {
		t.Errorf("done event: %+v", d)
	}
	if l := ag.log.String(); !strings.Contains(l, `"pages in use have been asked for"`) || !strings.Contains(l, "others=0") {
		t.Error("other pages were pushed before those in use")
	}
	pid := m.get("resumed").TargetPID
	r.sh(b, fmt.Sprintf("kill -USR2 %d", pid))
	says("wrong")
	if s := r.sh(a, "tail -n 1 /srv/status"); s != "wrong 0" {
		t.Errorf("the process says %q", s)
	}
	r.end(b, pid, "KILL")
	r.clean()
}

// TestHotWays: each way can be asked for, and the process has every byte.
func TestHotWays(t *testing.T) {
	for _, how := range []string{"wp", "smaps"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t, "hotset")
			a, b := r.l.A, r.l.B
			p := r.spawn(a, r.dir+"/hotset", "16", "/srv/status")
			r.eventually("the process to be ready", func() bool { return r.sh(a, "cat /srv/status 2>/dev/null; true") != "" })
			pid, m := r.move(a, b, p.Pid, "--hot", how)
			d := m.get("done")
			if d.Hot != how || how == "smaps" && d.HotBytes == 0 { // it writes next to nothing
				t.Errorf("done event: %+v", d)
			}
			r.sh(b, fmt.Sprintf("kill -USR1 %d; kill -USR2 %[1]d", pid))
			r.eventually("the process to look", func() bool { return strings.Contains(r.sh(a, "tail -n 1 /srv/status"), "wrong") })
			if s := r.sh(a, "tail -n 1 /srv/status"); s != "wrong 0" {
				t.Errorf("the process says %q", s)
			}
			r.end(b, pid, "KILL")
			r.clean()
		})
	}
}
