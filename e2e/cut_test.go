package e2e

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/lab"
)

// lines counts the journal's lines on the source's host.
func (r *rig) lines(path string) int {
	r.t.Helper()
	b, err := os.ReadFile(r.l.A.Path(path))
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

const journalFile = "/srv/j/journal"

// journaling starts a program that writes a journal line by line on A; grows waits for more than n lines.
func (r *rig) journaling() (p *lab.Proc, grows func(n int)) {
	r.t.Helper()
	r.sh(r.l.A, "mkdir /srv/j")
	p = r.spawn(r.l.A, r.dir+"/journal", "/srv/j")
	r.eventually("journal to begin", func() bool { return r.sh(r.l.A, "cat "+journalFile+" 2>/dev/null; true") != "" })
	return p, func(n int) {
		r.t.Helper()
		was := r.lines(journalFile)
		r.eventually("journal to grow", func() bool { return r.lines(journalFile) > was+n })
	}
}

// TestCutWhileDrained cuts the network while a moved program changes files at the source, until both sides have given their connections up, and
// for moments that they sleep through: each change is done exactly once.
func TestCutWhileDrained(t *testing.T) {
	r := newHosts(t, "journal")
	ag := r.agent(r.l.B)
	p, grows := r.journaling()
	pid, _ := r.move(r.l.A, r.l.B, p.Pid)
	grows(50)
	for n := range 2 {
		if err := r.l.CutLink(r.ctx); err != nil {
			t.Fatal(err)
		}
		r.eventually("both sides to notice", func() bool {
			return strings.Count(ag.log.String(), "source's files is lost") > n &&
				strings.Count(r.sh(r.l.A, "cat /var/lib/lazymig/*.log"), "target is lost") > n
		})
		if err := r.l.RestoreLink(r.ctx); err != nil {
			t.Fatal(err)
		}
		grows(50)
	}
	for range 2 { // TCP bridges these
		if err := r.l.CutLink(r.ctx); err != nil {
			t.Fatal(err)
		}
		if err := r.l.RestoreLink(r.ctx); err != nil {
			t.Fatal(err)
		}
		grows(5)
	}
	r.end(r.l.B, pid, "TERM")
	b, err := os.ReadFile(r.l.A.Path(journalFile))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for i, s := range all {
		if s != strconv.Itoa(i+1) {
			t.Fatalf("line %d of %d is %q", i+1, len(all), s)
		}
	}
	t.Logf("%d lines", len(all))
	r.clean()
}

// TestCutInRestore cuts the network while the target restores: the source gives up by itself, and so does the target, as soon as it can't
// go on, or, if all that the restore needed had been told ahead and the question is asked, when the source has answered it.
func TestCutInRestore(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=restore:" + gate})
	ch := r.checker(r.l.A, 64, 2)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid)
	r.parked(ag)
	if err := r.l.CutLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.sh(r.l.B, "touch "+gate)
	m := g.wait()
	if err := r.l.RestoreLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.eventually("B to give up", func() bool { return slices.Equal(r.states(r.l.B), []string{"target aborted"}) })
	r.runsOn(m, ch, 4, "the target has said nothing")
	r.stood(m)
}

// TestCertificatesEnd: certificates that end in the middle end no migration. All connections are cut, the agent is another one, and the tree's files are reached again.
func TestCertificatesEnd(t *testing.T) {
	r := newHosts(t, "journal")
	ag := r.agent(r.l.B)
	p, grows := r.journaling()
	pid, _ := r.move(r.l.A, r.l.B, p.Pid)
	end := time.Now().Add(time.Second)
	if err := keys.HostUntil(r.keys, end, r.l.A.Addr, r.l.B.Addr); err != nil {
		t.Fatal(err)
	}
	r.eventually("certificates to end", func() bool { return time.Now().After(end) })
	if err := r.l.CutLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.eventually("both sides to notice", func() bool {
		return strings.Contains(ag.log.String(), "source's files is lost") && strings.Contains(r.sh(r.l.A, "cat /var/lib/lazymig/*.log"), "target is lost")
	})
	if err := r.l.RestoreLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	grows(20)
	r.killAgent(ag)
	r.agent(r.l.B)
	if out := r.sh(r.l.A, r.lazymig+" check --to "+r.l.B.Addr+":"+agentPort+" --tls-dir "+r.keys+" 2>&1; true"); !strings.Contains(out, "expired") {
		t.Errorf("what is new is not told that the certificates have ended: %s", out)
	}
	grows(20)
	r.end(r.l.B, pid, "TERM")
	r.clean()
	if s := r.states(r.l.A); len(s) != 1 || s[0] != "source ended" { // told by the next agent
		t.Errorf("records of A: %q", s)
	}
}
