package e2e

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// killSource kills the source's process, and nothing else of lazymig.
func (r *rig) killSource() {
	r.t.Helper()
	r.sh(r.l.A, "pkill -KILL -f 'lazymig [s]ource'")
}

// each demands that a journal of testdata/journal.c has each line once.
func (r *rig) eachOnce(path string) {
	r.t.Helper()
	b, err := os.ReadFile(r.l.A.Path(path))
	if err != nil {
		r.t.Fatal(err)
	}
	all := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for i, s := range all {
		if s != strconv.Itoa(i+1) {
			r.t.Fatalf("line %d of %d is %q", i+1, len(all), s)
		}
	}
	r.t.Logf("%d lines", len(all))
}

// TestSourceKilledDraining kills the source's process when the tree runs on the target and most of its memory is missing there: the warden starts
// another, which serves on, and whoever follows the migration notices nothing but a notice.
func TestSourceKilledDraining(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=drain:" + gate})
	ch := r.checker(r.l.A, 128, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	r.killSource()
	r.sh(r.l.B, "touch "+gate)
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s\n%s", m.code, m.stderr, r.sh(r.l.A, "tail -n 40 /var/lib/lazymig/*.log"))
	}
	r.goesOn(r.l.A, ch.status)
	if d := m.get("done"); d == nil || d.DowntimeMS <= 0 {
		t.Errorf("done event: %+v", d)
	}
	ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
	r.clean()
	if s := r.states(r.l.A); len(s) != 1 || s[0] != "source ended" {
		t.Errorf("records of A: %q", s)
	}
}

// TestSourceKilledDrained kills the source's process again and again while a moved program changes files there: each change is done once.
func TestSourceKilledDrained(t *testing.T) {
	r := newRig(t, "journal")
	r.sh(r.l.A, "mkdir /srv/j")
	const journal = "/srv/j/journal"
	p := r.spawn(r.l.A, r.dir+"/journal", "/srv/j")
	r.eventually("journal to begin", func() bool { return r.sh(r.l.A, "cat "+journal+" 2>/dev/null; true") != "" })
	pid, _ := r.move(r.l.A, r.l.B, p.Pid)
	for range 5 {
		was := r.lines(journal)
		r.eventually("journal to grow", func() bool { return r.lines(journal) > was+50 })
		r.killSource()
	}
	was := r.lines(journal)
	r.eventually("journal to grow", func() bool { return r.lines(journal) > was+50 })
	r.end(r.l.B, pid, "TERM")
	r.eachOnce(journal)
	r.clean()
}

// TestSourceKilledStreams kills the source's process while it carries a moved program's standard streams: no byte is lost, none comes twice.
func TestSourceKilledStreams(t *testing.T) {
	r := newRig(t, "streams")
	s := r.startStreams("cat /srv/ctl | $PROG | cat >/srv/out")
	r.move(r.l.A, r.l.B, s.pid)
	for range 3 {
		s.goesOn()
		r.killSource()
	}
	s.goesOn()
	s.end()
	r.sourceEnds()
	r.clean()
}

// TestSourceKilledAsked kills the source's process while the target holds the tree and is about to ask: the tree goes on at the source, and the target learns
// that it will not be granted, also if it can't be reached at first.
func TestSourceKilledAsked(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(map[bool]string{false: "linked", true: "cut"}[cut], func(t *testing.T) {
			r := newHosts(t, "checker")
			ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=asked:" + gate})
			ch := r.checker(r.l.A, 64, 2)
			g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
			r.parked(ag)
			if cut {
				if err := r.l.CutLink(r.ctx); err != nil {
					t.Fatal(err)
				}
			}
			r.killSource()
			if m := g.wait(); m.code != 4 || !strings.Contains(m.stderr, "before the handover") {
				t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
			}
			r.goesOn(r.l.A, ch.status)
			r.sh(r.l.B, "touch "+gate)
			if cut {
				r.eventually("target to wait for the source", func() bool { return strings.Contains(ag.log.String(), "source is lost after the question") })
				if err := r.l.RestoreLink(r.ctx); err != nil {
					t.Fatal(err)
				}
			}
			r.eventually("both sides to give up", func() bool {
				return slices.Equal(r.states(r.l.A), []string{"source aborted"}) && slices.Equal(r.states(r.l.B), []string{"target aborted"})
			})
			r.clean()
			r.ended(r.l.A, r.l.A, ch.proc.Pid, ch.status)
		})
	}
}

// killAgent kills the agent of B, and nothing else of lazymig.
func (r *rig) killAgent(ag *agent) {
	r.t.Helper()
	r.sh(r.l.B, "pkill -KILL -f 'lazymig [a]gent'")
	_ = ag.cmd.Wait() // killed
}

// TestAgentKilledDraining kills the agent when most of the memory is missing; the next one takes the migration up, with the connection cut meanwhile.
func TestAgentKilledDraining(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=drain:" + gate})
	ch := r.checker(r.l.A, 128, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	r.killAgent(ag)
	if err := r.l.CutLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	ag = r.agent(r.l.B)
	r.eventually("next agent to take the migration up", func() bool { return strings.Contains(ag.log.String(), "migration is taken up") })
	if err := r.l.RestoreLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s\n%s", m.code, m.stderr, r.sh(r.l.A, "tail -n 40 /var/lib/lazymig/*.log"))
	}
	r.goesOn(r.l.A, ch.status)
	ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
	r.clean()
	if s := r.states(r.l.B); len(s) != 1 || s[0] != "target ended" {
		t.Errorf("records of B: %q", s)
	}
}

// TestAgentKilledStreams kills the agent while the tree writes to standard streams that the source carries, and reads from them: no byte is lost, none comes twice.
func TestAgentKilledStreams(t *testing.T) {
	r := newHosts(t, "streams")
	ag := r.agent(r.l.B)
	s := r.startStreams("cat /srv/ctl | $PROG | cat >/srv/out")
	r.move(r.l.A, r.l.B, s.pid)
	for range 2 {
		s.goesOn()
		r.killAgent(ag)
		ag = r.agent(r.l.B)
	}
	s.goesOn()
	s.end()
	r.sourceEnds()
	r.clean()
}

// killSourceHost kills all of lazymig on A but a command that only follows.
func (r *rig) killSourceHost() { r.t.Helper(); r.killSide(r.l.A) }

// killSide kills all that serves a source. They are stopped before, so that nobody is there who would see another's end.
func (r *rig) killSide(h *lab.Host) {
	r.t.Helper()
	const all = "'lazymig ([w]arden|[s]ource|[r]ecover)'"
	r.sh(h, "pkill -STOP -f "+all+"; pkill -KILL -f "+all)
}

// id is of A's only migration.
func (r *rig) id() string {
	r.t.Helper()
	return r.sh(r.l.A, r.lazymig+` list --json | sed 's/.*"id":"\([0-9a-f]*\)".*/\1/'`)
}

// TestRecover kills source and warden while memory is missing at the target: `lazymig recover` serves it.
func TestRecover(t *testing.T) {
	r := newHosts(t)
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=drain:" + gate})
	p := r.spawn(r.l.A, "/bin/sh", "-c", "while :; do :; done")
	g := r.begin(r.l.A, r.l.B, p.Pid)
	r.parked(ag)
	r.killSourceHost()
	if m := g.wait(); m.code != 5 || !strings.Contains(m.stderr, "after the handover") {
		t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.sh(r.l.B, "touch "+gate)
	if out := r.sh(r.l.A, r.lazymig+" recover"); !strings.Contains(out, "does not answer") {
		t.Errorf("recover shows %q", out)
	}
	rec := r.recover(r.id())
	r.eventually("memory to be moved", func() bool {
		return slices.Equal(r.states(r.l.A), []string{"source drained"}) && slices.Equal(r.states(r.l.B), []string{"target drained"})
	})
	r.sh(r.l.B, "pkill -KILL -f '[w]hile :; do :; done'")
	rec.over()
	r.clean()
}

// TestResumeSource takes a granted tree back that the target still holds: only with its word that it has killed it.
func TestResumeSource(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agent(r.l.B)
	ch := r.checker(r.l.A, 64, 2)
	r.sourceEnv = []string{"LAZYMIG_PARK=granted:" + gate}
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.eventually("source to grant", func() bool { return strings.Contains(r.sh(r.l.A, "cat /var/lib/lazymig/*.log; true"), "parked") })
	r.killSourceHost()
	_ = g.wait() // it has seen its process end
	again := r.lazymig + " recover --resume-source --tls-dir " + r.keys + " " + r.id() + " 2>&1"
	r.killAgent(ag)
	ag = r.agent(r.l.B, "--state-dir", "/var/lib/empty") // knows nothing
	if out := r.sh(r.l.A, again+"; true"); !strings.Contains(out, "does not prove") {
		t.Errorf("a target that knows nothing is a proof: %s", out)
	}
	if err := ag.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = ag.cmd.Wait() // killed
	_, before := r.status(r.l.A, ch.status)
	r.agent(r.l.B)
	if _, now := r.status(r.l.A, ch.status); now[0] != before[0] {
		t.Error("the tree runs before it is resumed")
	}
	r.sh(r.l.A, again)
	r.goesOn(r.l.A, ch.status)
	if a, b := r.states(r.l.A), r.states(r.l.B); !slices.Equal(a, []string{"source aborted"}) || !slices.Equal(b, []string{"target aborted"}) {
		t.Errorf("records: %q, %q", a, b)
	}
	r.clean()
	r.ended(r.l.A, r.l.A, ch.proc.Pid, ch.status)
}

// TestRecoverSourceLoss: a tree whose source is away for too long waits, and status says so, or is killed, as was chosen before.
func TestRecoverSourceLoss(t *testing.T) {
	for _, how := range []string{"wait", "kill"} {
		t.Run(how, func(t *testing.T) {
			r := newHosts(t, "checker")
			r.agentWith(r.l.B, []string{"LAZYMIG_PARK=drain:" + gate})
			ch := r.checker(r.l.A, 64, 2)
			g := r.begin(r.l.A, r.l.B, ch.proc.Pid, "--on-source-loss", how, "--source-loss-after", "1s")
			r.parked(r.agents[r.l.B])
			if err := r.l.CutLink(r.ctx); err != nil {
				t.Fatal(err)
			}
			r.sh(r.l.B, "touch "+gate)
			status := func() string {
				return r.sh(r.l.B, r.lazymig+" status $("+r.lazymig+` list --json | sed 's/.*"id":"\([0-9a-f]*\)".*/\1/')`)
			}
			if how == "kill" {
				r.eventually("tree to be killed", func() bool { return strings.Contains(status(), "killed: the source was away") })
			} else {
				r.eventually("status to tell", func() bool {
					s := status()
					return strings.Contains(s, "the source has not answered") && strings.Contains(s, "pages (")
				})
			}
			if err := r.l.RestoreLink(r.ctx); err != nil {
				t.Fatal(err)
			}
			m := g.wait()
			if how == "wait" {
				if m.code != 0 {
					t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
				}
				ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
			}
			r.clean()
			if a, b := r.states(r.l.A), r.states(r.l.B); !slices.Equal(a, []string{"source ended"}) || !slices.Equal(b, []string{"target ended"}) {
				t.Errorf("records: %q, %q", a, b)
			}
		})
	}
}
