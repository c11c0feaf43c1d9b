package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestStop moves a tree that is not let go before all of its memory is there, shared memory too: when it runs, the source's is not needed any more.
func TestStop(t *testing.T) {
	r := newHosts(t, "churn")
	a, b := r.l.A, r.l.B
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=drain:" + gate})
	p := r.spawn(a, r.dir+"/churn", "128", "/srv/status")
	r.goesOn(a, "/srv/status")
	pid, m := r.move(a, b, p.Pid, "--mode", "stop", "--until", "resumed")
	r.parked(ag) // the agent pushes nothing after the resume
	if e := m.get("resumed"); e.FillMS <= 0 || e.FillMS > e.DowntimeMS {
		t.Errorf("resumed event: %+v", e)
	}
	r.goesOn(a, "/srv/status")
	if out := r.sh(b, fmt.Sprintf("grep -c '^VmFlags:.* um' /proc/%d/smaps; true", pid)); out != "0" {
		t.Errorf("%s mappings still wait for pages", out)
	}
	if s := r.states(a); len(s) != 1 || s[0] != "source resumed" {
		t.Errorf("records of A: %q", s)
	}
	r.sh(b, "touch "+gate)
	r.eventually("the source to hear that all is there", func() bool { return r.states(a)[0] == "source drained" })
	r.ended(a, b, pid, "/srv/status")
	r.clean()
}

// TestAhead moves a tree that forks, moves, drops, unmaps and writes memory, of which much has been copied ahead: every byte is what it was at the freeze.
func TestAhead(t *testing.T) {
	for _, how := range []struct{ mode, track string }{{"hybrid", "wp"}, {"pre", "wp"}, {"hybrid", "hash"}, {"pre", "hash"}} {
		mode := how.mode
		t.Run(mode+", "+how.track, func(t *testing.T) {
			r := newRig(t, "churn")
			a, b := r.l.A, r.l.B
			p := r.spawn(a, r.dir+"/churn", "128", "/srv/status")
			r.goesOn(a, "/srv/status")
			pid, m := r.move(a, b, p.Pid, "--mode", mode, "--track", how.track)
			d := m.get("done")
			t.Logf("ahead: %d MB in %d rounds and %.0f ms, %d MB good; %d MB sent, memory %d MB; filled in %.1f ms", d.AheadBytes>>20, d.Rounds, d.AheadMS, d.AheadGood>>20, d.BytesSent>>20, d.MemoryBytes>>20, d.FillMS)
			if d.AheadBytes == 0 || d.AheadGood == 0 || (d.FillMS > 0) != (mode == "pre") {
				t.Errorf("done event: %+v", d)
			}
			r.goesOn(a, "/srv/status")
			r.ended(a, b, pid, "/srv/status")
			r.clean()
		})
	}
}

// TestAheadKilled: whoever dies while memory is copied ahead, the process runs on where it was, with the right bytes, and nothing of the tracking is left.
func TestAheadKilled(t *testing.T) {
	for _, who := range []string{"source", "agent", "command", "guardian", "FUSE daemon", "line"} {
		t.Run(who, func(t *testing.T) {
			r := newRig(t, "churn")
			a, b := r.l.A, r.l.B
			r.sourceEnv = []string{"LAZYMIG_PARK=ahead:" + gate}
			p := r.spawn(a, r.dir+"/churn", "32", "/srv/status")
			r.goesOn(a, "/srv/status")
			tracked := func() string {
				return r.sh(a, fmt.Sprintf("grep -c '^VmFlags:.* uw' /proc/%d/smaps; ls -l /proc/%[1]d/fd | grep -c userfaultfd; true", p.Pid))
			}
			g := r.begin(a, b, p.Pid, "--mode", "hybrid")
			r.eventually("memory to be copied ahead", func() bool { return r.sh(a, "grep -ch '\"parked\"' /var/lib/lazymig/*.log; true") == "1" })
			if s := tracked(); strings.HasPrefix(s, "0") || !strings.HasSuffix(s, "\n0") {
				t.Errorf("while its writes are tracked: %q mappings and descriptors", s)
			}
			switch who {
			case "source":
				r.killSource()
			case "agent":
				if err := r.agents[b].cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = r.agents[b].cmd.Wait() // killed
			case "command":
				if err := g.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			case "guardian":
				r.sh(b, "pkill -KILL -f '"+guardianPart.pattern+"'")
			case "FUSE daemon":
				r.sh(b, "pkill -KILL -f '"+fuseDaemonPart.pattern+"'")
			case "line":
				if err := r.l.CutLink(r.ctx); err != nil {
					t.Fatal(err)
				}
			}
			r.sh(a, "touch "+gate)
			if m := g.wait(); m.code != 4 && who != "command" {
				t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
			}
			r.eventually("writes not to be tracked any more", func() bool { return tracked() == "0\n0" })
			r.goesOn(a, "/srv/status")
			switch who {
			case "agent":
				r.agent(b)
			case "line":
				if err := r.l.RestoreLink(r.ctx); err != nil {
					t.Fatal(err)
				}
			}
			r.ended(a, a, p.Pid, "/srv/status")
			r.clean()
		})
	}
}

// TestInjectKilled kills the source's part while a thread of the process is stopped with registers that are not its own: who has stopped it puts them back, and the process goes
// on.
func TestInjectKilled(t *testing.T) {
	r := newRig(t, "churn")
	a, b := r.l.A, r.l.B
	r.sourceEnv = []string{"LAZYMIG_PARK=inject:" + gate}
	p := r.spawn(a, r.dir+"/churn", "32", "/srv/status")
	r.goesOn(a, "/srv/status")
	g := r.begin(a, b, p.Pid, "--mode", "hybrid")
	r.eventually("a thread to be made to call", func() bool { return r.sh(a, "grep -ch '\"parked\"' /var/lib/lazymig/*.log; true") == "1" })
	r.killSource()
	r.eventually("the end of the source's part", func() bool { return r.sh(a, "pgrep -f 'lazymig [s]ource'; true") == "" })
	r.sh(a, "touch "+gate)
	if m := g.wait(); m.code != 4 {
		t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.eventually("the injector's end", func() bool { return r.sh(a, "pgrep -f 'lazymig [i]njector'; true") == "" })
	if s := r.sh(a, fmt.Sprintf("grep -c '^VmFlags:.* uw' /proc/%d/smaps; ls -l /proc/%[1]d/fd | grep -c userfaultfd; true", p.Pid)); s != "0\n0" {
		t.Errorf("left in the process: %q mappings and descriptors", s)
	}
	r.goesOn(a, "/srv/status")
	r.ended(a, a, p.Pid, "/srv/status")
	r.clean()
}

// TestAuto: what writes little is copied ahead, what writes a lot is not, and the output says why and what it expects.
func TestAuto(t *testing.T) {
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	ch := r.checker(a, 128, 1)
	pid, m := r.move(a, b, ch.proc.Pid, "--mode", "auto")
	c, d := m.get("chosen"), m.get("done")
	if c == nil || c.Text == "" || c.Forecast == nil || c.Forecast.Mode != c.Mode || d.Forecast == nil || d.Forecast.Bytes != c.Forecast.Bytes {
		t.Fatalf("chosen: %+v, done: %+v", c, d)
	}
	t.Logf("%s: %s; expected %s; was %.0f ms, %.0f ms before, %.0f ms after, %d MB sent", c.Mode, c.Text, c.Forecast, d.DowntimeMS, d.AheadMS, d.DrainMS, d.BytesSent>>20)
	if (c.Mode == "post") != (d.AheadBytes == 0) {
		t.Errorf("done event: %+v", d)
	}
	ch.verdict(a, b, pid)
	r.clean()
}
