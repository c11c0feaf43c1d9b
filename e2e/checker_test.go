package e2e

import (
	"strconv"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// checker is a running testdata/checker.c.
type checker struct {
	r      *rig
	status string
	proc   *lab.Proc
}

func (r *rig) checker(h *lab.Host, mb, threads int, more ...string) *checker {
	r.t.Helper()
	c := &checker{r: r, status: "/srv/status"}
	c.proc = r.spawn(h, append([]string{r.dir + "/checker", strconv.Itoa(mb), strconv.Itoa(threads), c.status}, more...)...)
	r.eventually("checker to check", func() bool { w, _ := r.status(h, c.status); return w == "run" })
	return c
}

// verdict ends the checker and demands that no byte was wrong.
func (c *checker) verdict(home, on *lab.Host, pid int) {
	c.r.t.Helper()
	c.r.ended(home, on, pid, c.status)
}

func TestChecker(t *testing.T) {
	for _, c := range []struct {
		name        string
		mb, threads int
	}{{"64MB", 64, 1}, {"512MB/16threads", 512, 16}, {"2GB/4threads", 2048, 4}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, "checker")
			a, b := r.l.A, r.l.B
			ch := r.checker(a, c.mb, c.threads)
			pid, m := r.move(a, b, ch.proc.Pid)
			r.goesOn(a, ch.status)
			if d := m.get("done"); d == nil || d.DowntimeMS <= 0 || d.MemoryBytes < uint64(c.mb)<<20 {
				t.Errorf("done event: %+v", d)
			}
			if r.sh(a, "cat /proc/"+strconv.Itoa(ch.proc.Pid)+"/comm 2>/dev/null; true") != "" {
				t.Error("the source's tree is still there after the drain")
			}
			// The longest pause that the process saw by the wall clock holds the one that we tell.
			if _, f := r.status(a, ch.status); float64(f[1]) < 900*m.get("done").DowntimeMS {
				t.Errorf("the process saw a pause of %d µs, the event says %.1f ms", f[1], m.get("done").DowntimeMS)
			}
			ch.verdict(a, b, pid)
			r.clean()
			if s := r.states(a); len(s) != 1 || s[0] != "source ended" {
				t.Errorf("records of A: %q", s)
			}
			if s := r.states(b); len(s) != 1 || s[0] != "target ended" {
				t.Errorf("records of B: %q", s)
			}
		})
	}
}
