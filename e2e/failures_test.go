package e2e

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lazymig/lazymig/keys"
)

// gate is a file that nobody makes unless a test opens it (see package internal/park).
const gate = "/tmp/gate"

// runsOn demands that a migration failed and the tree runs on the source as before, and that nothing is left on the target.
func (r *rig) runsOn(m *moved, ch *checker, code int, want string) {
	r.t.Helper()
	if m.code != code || !strings.Contains(m.stderr, want) {
		r.t.Fatalf("migrate ended with %d, want %d and %q: %s", m.code, code, want, m.stderr)
	}
	if f := m.get("failed"); f == nil || f.SourceState != "running" {
		r.t.Errorf("failed event: %+v", f)
	}
	r.goesOn(r.l.A, ch.status)
	r.clean()
	r.ended(r.l.A, r.l.A, ch.proc.Pid, ch.status)
}

// parked waits until an agent stands at its point.
func (r *rig) parked(a *agent) {
	r.t.Helper()
	r.eventually("agent to be parked", func() bool { return strings.Contains(a.log.String(), `"parked"`) })
}

// TestRefused: the preflight refuses a tree that holds half of a pipe, before anything is touched.
func TestRefused(t *testing.T) {
	r := newRig(t)
	a := r.l.A
	r.spawn(a, "/bin/sh", "-c", "mkfifo /srv/f; exec sleep 1000 3<>/srv/f")
	p := r.spawn(a, "/bin/sh", "-c", "until test -p /srv/f; do sleep 0.01; done; exec sleep 999 5</srv/f")
	var pid string
	r.eventually("sleep to run", func() bool { pid = r.sh(a, "pgrep -x -f 'sleep 999'; true"); return pid != "" })
	m := r.try(a, r.l.B, p.Pid)
	if m.code != 3 || m.get("frozen") != nil || !strings.Contains(m.stderr, "pipe") {
		t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.sh(a, "kill -0 "+pid)
	if out := r.sh(a, "ls /var/lib/lazymig"); out != "" {
		t.Errorf("the state directory holds %s", out)
	}
	r.clean()
}

// TestAgentKilled kills the agent in the middle of the transfer, before the restore, and when the tree is held: the source goes on.
func TestAgentKilled(t *testing.T) {
	for _, point := range []string{"images", "restore", "asked"} {
		t.Run(point, func(t *testing.T) {
			r := newHosts(t, "checker")
			ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=" + point + ":" + gate})
			ch := r.checker(r.l.A, 64, 2)
			g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
			r.parked(ag)
			r.sh(r.l.B, "pkill -KILL -f 'lazymig [a]gent'")
			_ = ag.cmd.Wait() // killed
			r.agent(r.l.B)    // takes away what is left of the other
			r.runsOn(g.wait(), ch, 4, "control connection")
		})
	}
}

// TestRestoreFails kills the target's CRIU.
func TestRestoreFails(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=restore:" + gate})
	ch := r.checker(r.l.A, 64, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	r.sh(r.l.B, "pkill -KILL -f '[s]bin/criu swrk'")
	r.sh(r.l.B, "touch "+gate)
	r.runsOn(g.wait(), ch, 4, "restore tree")
}

// TestCertificates: neither side believes a certificate of another CA, the source none for another name than it has dialed, the agent none whose
// names it does not allow.
func TestCertificates(t *testing.T) {
	for name, c := range map[string]struct {
		agent []string
		spoil func(r *rig) error // before the migration
		want  string
	}{
		"foreign": {nil, func(r *rig) error {
			r.keys = filepath.Join(r.dir, "foreign")
			return errors.Join(keys.Init(r.keys), keys.Host(r.keys, r.l.A.Addr, r.l.B.Addr))
		}, "certificate signed by unknown authority"},
		"wrong":       {nil, func(r *rig) error { return keys.Host(r.keys, r.l.A.Addr) }, "certificate is valid for"},
		"not allowed": {[]string{"--allow", "a.example"}, func(*rig) error { return nil }, "bad certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newHosts(t, "checker")
			r.agent(r.l.B, c.agent...)
			ch := r.checker(r.l.A, 64, 1)
			if err := c.spoil(r); err != nil {
				t.Fatal(err)
			}
			r.runsOn(r.try(r.l.A, r.l.B, ch.proc.Pid), ch, 4, c.want)
		})
	}
}

// TestNoRoomForImages: the target has no room in memory for the images.
func TestNoRoomForImages(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=images:" + gate})
	ch := r.checker(r.l.A, 64, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	r.sh(r.l.B, "mount -o remount,size=64k /run; touch "+gate)
	r.runsOn(g.wait(), ch, 4, "no space left on device")
}

// TestAborted: an interrupt, a terminal that is gone, and `lazymig abort`, before the grant.
func TestAborted(t *testing.T) {
	for _, how := range []string{"interrupt", "hangup", "abort"} {
		t.Run(how, func(t *testing.T) {
			r := newHosts(t, "checker")
			ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=restore:" + gate})
			ch := r.checker(r.l.A, 64, 2)
			g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
			r.parked(ag)
			if how == "abort" {
				r.sh(r.l.A, r.lazymig+" abort "+r.id())
			} else if err := g.cmd.Process.Signal(views[how]); err != nil {
				t.Fatal(err)
			}
			m := g.wait()
			r.sh(r.l.B, "touch "+gate)
			r.runsOn(m, ch, 4, "aborted")
		})
	}
}

// views end by these.
var views = map[string]syscall.Signal{"interrupt": syscall.SIGINT, "hangup": syscall.SIGHUP}

// TestViewEnds: after the handover they end the view only, and abort is refused: the migration goes on by itself to its end.
func TestViewEnds(t *testing.T) {
	for how, sig := range views {
		t.Run(how, func(t *testing.T) {
			r := newHosts(t, "checker")
			ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=drain:" + gate})
			ch := r.checker(r.l.A, 64, 2)
			g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
			r.eventually("tree to run on B", func() bool { return strings.Contains(g.out.String(), `"resumed"`) })
			r.parked(ag)
			out, err := r.l.A.Command(r.ctx, r.lazymig, "abort", r.id()).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "has been handed over") {
				t.Errorf("abort after the handover: %v, %s", err, out)
			}
			if err := g.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			m := g.wait()
			if m.code != 1 || m.get("failed") != nil || !strings.Contains(m.stderr, "the view ends; migration "+r.id()+" goes on") {
				t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
			}
			if s := r.states(r.l.A); !slices.Equal(s, []string{"source resumed"}) {
				t.Errorf("records of A: %q", s)
			}
			r.sh(r.l.B, "touch "+gate)
			r.eventually("drain", func() bool { return slices.Equal(r.states(r.l.A), []string{"source drained"}) })
			ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
			r.clean()
		})
	}
}

// TestCutBeforeTheGrant cuts the network while the target holds the tree and has not asked yet: the source gives up, its tree runs, and the
// target learns it when the network is back, and lets go of what it holds.
func TestCutBeforeTheGrant(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=asked:" + gate})
	ch := r.checker(r.l.A, 64, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	if err := r.l.CutLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	m := g.wait()
	r.goesOn(r.l.A, ch.status)
	r.sh(r.l.B, "touch "+gate)
	r.eventually("target to wait for the source", func() bool { return strings.Contains(ag.log.String(), "source is lost after the question") })
	if err := r.l.RestoreLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.runsOn(m, ch, 4, "the target has said nothing")
	r.stood(m)
}

// TestStallInTransfer: while images are on their way nothing comes through any more, and neither side is told. The source gives up, and its tree runs, before
// anything else is heard of the target.
func TestStallInTransfer(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=images:" + gate})
	net := newProxy(r)
	r.via = net.addr()
	ch := r.checker(r.l.A, 64, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	net.stall()
	m := g.wait()
	r.goesOn(r.l.A, ch.status)
	net.goOn()
	r.sh(r.l.B, "touch "+gate)
	r.eventually("B to give up", func() bool { return slices.Equal(r.states(r.l.B), []string{"target aborted"}) })
	r.runsOn(m, ch, 4, "the target has said nothing")
	r.stood(m)
}

// stood tells how long the tree has stood still for nothing. TestSilentTarget of package migrate holds what it takes to notice to 2 s, by a clock
// that no busy machine disturbs.
func (r *rig) stood(m *moved) {
	r.t.Helper()
	frozen, failed := m.get("frozen"), m.get("failed")
	if frozen == nil || failed == nil {
		r.t.Fatalf("events: %+v", m.events)
	}
	r.t.Logf("%v from the freeze to the word that the tree runs", failed.Time.Sub(frozen.Time))
}

// TestCutAtTheGrant cuts the network between the source's grant and the target's: the tree runs nowhere until they speak again,
// and then on the target.
func TestCutAtTheGrant(t *testing.T) {
	r := newHosts(t, "checker")
	r.agent(r.l.B)
	ch := r.checker(r.l.A, 64, 2)
	r.sourceEnv = []string{"LAZYMIG_PARK=granted:" + gate}
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.eventually("source to grant", func() bool { return strings.Contains(r.sh(r.l.A, "cat /var/lib/lazymig/*.log; true"), "parked") })
	if err := r.l.CutLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.sh(r.l.A, "touch "+gate)
	r.eventually("source to notice", func() bool { return strings.Contains(r.sh(r.l.A, "cat /var/lib/lazymig/*.log"), "target is lost") })
	_, before := r.status(r.l.A, ch.status)
	if err := r.l.RestoreLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.eventually("checker to go on", func() bool { _, f := r.status(r.l.A, ch.status); return f != nil && f[0] > before[0] })
	ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
	r.clean()
}

// TestThawedByHand thaws the frozen tree between the last look at the freezer and the grant: it runs here, so it is not granted.
func TestThawedByHand(t *testing.T) {
	r := newRig(t, "checker")
	ch := r.checker(r.l.A, 64, 2)
	r.sourceEnv = []string{"LAZYMIG_PARK=grant:" + gate}
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.eventually("source to be about to grant", func() bool { return strings.Contains(r.sh(r.l.A, "cat /var/lib/lazymig/*.log; true"), "parked") })
	// By its name: the cgroups are the whole machine's.
	r.sh(r.l.A, "id=$(basename /var/lib/lazymig/*.log .log | cut -c1-8); f=$(find /sys/fs/cgroup -path \"*/lazymig-$id-src/cgroup.freeze\"); echo 0 > $f; touch "+gate)
	r.runsOn(g.wait(), ch, 4, "not frozen")
}

// TestAgentKilledLater kills the agent when all memory has moved: the tree goes on, its files are served without the agent, and the next one
// notices the end and tells the source.
func TestAgentKilledLater(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agent(r.l.B)
	ch := r.checker(r.l.A, 64, 2)
	pid, _ := r.move(r.l.A, r.l.B, ch.proc.Pid)
	r.sh(r.l.B, "pkill -KILL -f 'lazymig [a]gent'")
	_ = ag.cmd.Wait() // killed
	r.goesOn(r.l.A, ch.status)
	r.agent(r.l.B)
	r.goesOn(r.l.A, ch.status)
	ch.verdict(r.l.A, r.l.B, pid)
	r.clean()
	if s := r.states(r.l.A); len(s) != 1 || s[0] != "source ended" {
		t.Errorf("records of A: %q", s)
	}
}
