package e2e

import (
	"errors"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lazymig/lazymig/lab"
)

// recovering is a `lazymig recover` in the foreground.
type recovering struct {
	r   *rig
	log logBuffer
	end func() error
}

func (r *rig) recover(id string) *recovering { r.t.Helper(); return r.recoverOn(r.l.A, id) }

func (r *rig) recoverOn(h *lab.Host, id string) *recovering {
	r.t.Helper()
	rec := &recovering{r: r}
	cmd := h.Command(r.ctx, r.lazymig, "recover", "--json", id)
	cmd.Env = append(lab.Env(), loud)
	cmd.Stdout, cmd.Stderr = &rec.log, &rec.log
	cmd.WaitDelay = time.Millisecond // as over says
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	rec.end = cmd.Wait
	r.t.Cleanup(func() {
		if r.t.Failed() {
			r.t.Logf("recover:\n%s", rec.log.String())
		}
	})
	return rec
}

// over waits for its end, which must be a good one.
func (rec *recovering) over() {
	rec.r.t.Helper()
	if err := rec.end(); err != nil && !errors.Is(err, exec.ErrWaitDelay) { // its wardens have its output, too, for a moment
		rec.r.t.Errorf("recover: %v\n%s", err, rec.log.String())
	}
	noRefusal(rec.r.t, "recover", rec.log.String())
}

// TestRecoverFilesDraining kills source and warden while most of the memory is missing on the target and a program changes files: `lazymig recover` serves both again, and
// each change is done once.
func TestRecoverFilesDraining(t *testing.T) {
	r := newHosts(t, "journal")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=drain:" + gate})
	r.sh(r.l.A, "mkdir /srv/j")
	const journal = "/srv/j/journal"
	p := r.spawn(r.l.A, r.dir+"/journal", "/srv/j")
	r.eventually("journal to begin", func() bool { return r.sh(r.l.A, "cat "+journal+" 2>/dev/null; true") != "" })
	g := r.begin(r.l.A, r.l.B, p.Pid)
	r.parked(ag)
	was := r.lines(journal)
	r.eventually("journal to grow", func() bool { return r.lines(journal) > was+50 })
	r.killSourceHost()
	_ = g.wait() // it has seen its process end
	r.sh(r.l.B, "touch "+gate)
	rec := r.recover(r.id())
	was = r.lines(journal)
	r.eventually("journal to grow", func() bool { return r.lines(journal) > was+50 })
	r.eventually("memory to be moved", func() bool {
		return slices.Equal(r.states(r.l.A), []string{"source drained"}) && slices.Equal(r.states(r.l.B), []string{"target drained"})
	})
	r.sh(r.l.B, "pkill -TERM -f '/[j]ournal /srv/j'")
	rec.over()
	r.eachOnce(journal)
	// What it was just removing may be told to be gone; it would have ended if it missed that.
	if strings.Contains(rec.log.String(), "it was srv/j/journal") {
		t.Error("the journal was lost")
	}
	r.clean()
}

// TestRecoverUnlinked: files without a name are had from the frozen tree, as long as that is there.
func TestRecoverUnlinked(t *testing.T) {
	r := newHosts(t)
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=drain:" + gate})
	p := r.unlinked()
	g := r.begin(r.l.A, r.l.B, p.Pid)
	r.parked(ag)
	r.killSourceHost()
	m := g.wait()
	rec := r.recover(r.id())
	r.sh(r.l.B, "touch "+gate)
	r.eventually("memory to be moved", func() bool { return slices.Equal(r.states(r.l.A), []string{"source drained"}) })
	pid := m.get("resumed").TargetPID
	r.sh(r.l.B, "kill -USR1 "+strconv.Itoa(pid))
	r.says(r.l.A, "verdict", "cat /srv/u/verdict", "OK")
	r.end(r.l.B, pid, "KILL")
	rec.over()
	r.says(r.l.A, "nothing to lie about", "ls /srv/u | tr '\n' ' '", "g ready verdict")
	r.clean()
}

// TestRecoverFilesDrained kills source and warden again and again when all memory is on the target and a program changes files.
func TestRecoverFilesDrained(t *testing.T) {
	r := newRig(t, "journal")
	r.sh(r.l.A, "mkdir /srv/j")
	const journal = "/srv/j/journal"
	p := r.spawn(r.l.A, r.dir+"/journal", "/srv/j")
	r.eventually("journal to begin", func() bool { return r.sh(r.l.A, "cat "+journal+" 2>/dev/null; true") != "" })
	pid, _ := r.move(r.l.A, r.l.B, p.Pid)
	id := r.id()
	var rec *recovering
	for range 3 {
		was := r.lines(journal)
		r.eventually("journal to grow", func() bool { return r.lines(journal) > was+50 })
		r.killSourceHost()
		if rec != nil {
			_ = rec.end() // killed
		}
		rec = r.recover(id)
	}
	was := r.lines(journal)
	r.eventually("journal to grow", func() bool { return r.lines(journal) > was+50 })
	r.end(r.l.B, pid, "TERM")
	rec.over()
	r.eachOnce(journal)
	r.clean()
}
