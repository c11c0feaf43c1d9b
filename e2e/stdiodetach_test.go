package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestStdioDetach detaches a tree whose standard output goes to a file of the target, or to its journald: it has that itself then, nothing carries, and each line has
// come once and in order.
func TestStdioDetach(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	for _, to := range []string{"/srv/log", "journal"} {
		t.Run(strings.Trim(to, "/"), func(t *testing.T) {
			r := newRig(t)
			a, b := r.l.A, r.l.B
			if to == "journal" {
				r.journald(b)
			}
			r.spawn(a, "/bin/sh", "-c", "/usr/bin/python3 "+r.script("lines.py")+" 2>&1 </dev/null | cat >/srv/out")
			r.eventually("lines", func() bool { return r.sh(a, "wc -l </srv/out 2>/dev/null || echo 0") > "1" })
			p, err := strconv.Atoi(r.sh(a, "pgrep -f '[l]ines.py' | tail -n 1"))
			if err != nil {
				t.Fatal(err)
			}
			pid, root := r.detach(a, b, p, append(r.locals(a, b), "--stdio", to)...)
			r.strand(b)
			r.alone(b, pid)
			for fd := range 2 {
				link := r.sh(b, fmt.Sprintf("readlink /proc/%d/fd/%d", pid, fd+1))
				if to == "journal" && !strings.HasPrefix(link, "socket:") || to != "journal" && link != to {
					t.Errorf("descriptor %d is %s", fd+1, link)
				}
			}
			lines := r.sh(b, "wc -l </srv/log")
			r.eventually("more lines", func() bool { return r.sh(b, "wc -l </srv/log") != lines })
			r.sh(b, "touch "+root+"/srv/stop")
			r.says(b, "last line", "tail -n 1 /srv/log", "end")
			r.eventually("end of the tree", func() bool { return r.sh(b, fmt.Sprintf("test -d /proc/%d; echo $?", pid)) == "1" })
			if to == "journal" {
				r.says(b, "end of the stream", "ls /srv/over", "/srv/over")
				head := r.sh(b, "head -n 7 /srv/log | tr '\n' ,")
				if head != "python3,,6,1,0,0,0," {
					t.Errorf("journald is told %q", head)
				}
				r.sh(b, "sed -i 1,7d /srv/log")
			}
			all := strings.Fields(r.sh(a, "cat /srv/out") + "\n" + r.sh(b, "cat /srv/log"))
			for i, l := range all[:len(all)-1] {
				if l != strconv.Itoa(i+1) {
					t.Fatalf("line %d is %q", i+1, l)
				}
			}
			t.Logf("%d lines, %s on the target", len(all)-1, r.sh(b, "wc -l </srv/log"))
			r.over(b)
		})
	}
}

// TestStdioDetachRelay detaches the middle of a pipeline from its files; its streams are carried on, and named.
func TestStdioDetachRelay(t *testing.T) {
	r := newRig(t, "streams")
	a, b := r.l.A, r.l.B
	s := r.startStreams("cat /srv/ctl | $PROG | cat >/srv/out")
	m := r.try(a, b, s.pid, append(r.locals(a, b), "--until", "detached")...)
	d := m.get("detached")
	if m.code != 5 || d == nil || len(d.Residual) != 1 || !strings.Contains(m.stderr, "needs this host for: standard streams") {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	if left := r.sh(b, fmt.Sprintf("grep -c fuse.lazymig /proc/%d/mountinfo; pgrep -f 'lazymig fuse-[d]aemon'; true", m.get("resumed").TargetPID)); left != "0" {
		t.Errorf("FUSE is left: %s", left)
	}
	for h, want := range map[string]string{r.sh(a, r.lazymig+" status "+d.ID): "source  drained", r.sh(b, r.lazymig+" status "+d.ID): "target  drained"} {
		if !strings.Contains(h, want) || !strings.Contains(h, "residual dependency: standard streams") {
			t.Errorf("status: %s", h)
		}
	}
	s.goesOn()
	s.end()
	r.sourceEnds()
	r.clean()
}
