package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/lab"
)

// streams is a tree whose standard input and output are connected to processes on A that stay there.
type streams struct {
	r   *rig
	pid int
}

// startStreams runs script on A, in which $PROG is the program that will move; what it writes has to end up in /srv/out, and what
// comes on /srv/ctl has to reach it. Another process writes numbers to /srv/ctl until /srv/stop is there.
func (r *rig) startStreams(script string) *streams {
	r.t.Helper()
	a := r.l.A
	r.sh(a, "mkfifo /srv/ctl; touch /srv/out")
	r.spawn(a, "/bin/sh", "-c", "PROG="+r.dir+"/streams; export PROG; "+script)
	r.spawn(a, "/bin/sh", "-c", "exec 3>/srv/ctl; i=0; while [ ! -e /srv/stop ]; do i=$((i+1)); echo $i >&3; sleep 0.003; done; echo $i >/srv/fed")
	s := &streams{r: r}
	r.eventually("program to run", func() bool {
		s.pid, _ = strconv.Atoi(r.sh(a, "pgrep -x streams; true"))
		return s.pid != 0
	})
	s.goesOn()
	return s
}

func (s *streams) out() []string {
	return strings.Split(s.r.sh(s.r.l.A, "cat /srv/out"), "\n")
}

// goesOn waits until more has come back of what goes in, and more of what is counted.
func (s *streams) goesOn() {
	s.r.t.Helper()
	count := func(prefix string) int {
		n, _ := strconv.Atoi(s.r.sh(s.r.l.A, "grep -c '^"+prefix+"' /srv/out; true"))
		return n
	}
	i, o := count("i"), count("o")
	s.r.eventually("bytes in both directions", func() bool { return count("i") > i+50 && count("o") > o+200 })
}

// end ends the input and demands that everything came, once and in order.
func (s *streams) end() {
	s.r.t.Helper()
	a := s.r.l.A
	s.r.sh(a, "touch /srv/stop")
	s.r.eventually("the last line", func() bool { return strings.HasPrefix(s.r.sh(a, "tail -n 1 /srv/out"), "end ") })
	var i, o int
	all := s.out()
	for n, l := range all {
		f := strings.Fields(l)
		switch {
		case len(f) == 3 && f[0] == "o" && f[1] == strconv.Itoa(o+1):
			o++
		case len(f) == 2 && f[0] == "i" && f[1] == strconv.Itoa(i+1):
			i++
		case n == len(all)-1 && l == fmt.Sprintf("end %d %d", o, i):
		default:
			s.r.t.Fatalf("line %d is %q after o %d, i %d", n+1, l, o, i)
		}
	}
	if fed := s.r.sh(a, "cat /srv/fed"); fed != strconv.Itoa(i) {
		s.r.t.Errorf("%d lines came back of %s", i, fed)
	}
	s.r.t.Logf("%d lines out, %d lines in and out", o, i)
}

// cut cuts the link until both sides have noticed, and joins it again.
func (s *streams) cut() {
	r := s.r
	r.t.Helper()
	if err := r.l.CutLink(r.ctx); err != nil {
		r.t.Fatal(err)
	}
	r.eventually("source to notice", func() bool { return strings.Contains(r.sh(r.l.A, "cat /var/lib/lazymig/*.log"), "target is lost") })
	if err := r.l.RestoreLink(r.ctx); err != nil {
		r.t.Fatal(err)
	}
}

// TestStdioPipes moves the middle of a pipeline; the link is cut meanwhile. Both pipes have bytes in them all the time.
func TestStdioPipes(t *testing.T) {
	r := newRig(t, "streams")
	s := r.startStreams("cat /srv/ctl | $PROG | cat >/srv/out")
	_, m := r.move(r.l.A, r.l.B, s.pid)
	if n := m.get("notice"); n == nil {
		t.Error("nothing is said about the streams")
	}
	s.goesOn()
	s.cut()
	s.goesOn()
	s.end()
	r.sourceEnds()
	r.clean()
}

// TestStdioFIFOs is TestStdioPipes with FIFOs.
func TestStdioFIFOs(t *testing.T) {
	r := newRig(t, "streams")
	r.sh(r.l.A, "mkfifo /srv/from")
	s := r.startStreams("cat </srv/from >/srv/out & exec sh -c 'exec $PROG </srv/ctl >/srv/from'")
	r.move(r.l.A, r.l.B, s.pid)
	s.goesOn()
	s.cut()
	s.goesOn()
	s.end()
	r.sourceEnds()
	r.clean()
}

// TestStdioSocket moves a process whose standard input and output are one socket, as services of systemd and sshd have them.
func TestStdioSocket(t *testing.T) {
	r := newRig(t, "streams")
	py := r.dir + "/pair.py"
	if err := os.WriteFile(py, []byte(`
import os, socket, subprocess, threading
a, b = socket.socketpair()
p = subprocess.Popen([os.environ["PROG"]], stdin=b, stdout=b)
b.close()
def feed():
    for line in open("/srv/ctl", "rb", 0):
        a.sendall(line)
    a.shutdown(socket.SHUT_WR)
threading.Thread(target=feed).start()
with open("/srv/out", "wb", 0) as out:
    while chunk := a.recv(65536):
        out.write(chunk)
`), 0o644); err != nil {
		t.Fatal(err)
	}
	s := r.startStreams("exec python3 " + py)
	r.move(r.l.A, r.l.B, s.pid)
	s.goesOn()
	s.cut()
	s.killCarrier()
	s.goesOn()
	s.end()
	r.sourceEnds()
	r.clean()
}

// killCarrier kills the carrier of a tree that is on B, and waits until another has taken over.
func (s *streams) killCarrier() {
	r := s.r
	r.t.Helper()
	pid := func() string { return r.sh(r.l.B, "pgrep -f 'lazymig [c]arrier'; true") }
	old := pid()
	r.sh(r.l.B, "kill -KILL "+old)
	r.eventually("the next carrier", func() bool { now := pid(); return now != "" && now != old })
}

// TestStdioCarrierKilled kills the carrier again and again while both pipes have bytes in them: each comes once, in order, and so do the ends.
func TestStdioCarrierKilled(t *testing.T) {
	r := newRig(t, "streams")
	s := r.startStreams("cat /srv/ctl | $PROG | cat >/srv/out")
	r.move(r.l.A, r.l.B, s.pid)
	for range 3 {
		s.killCarrier()
		s.goesOn()
	}
	s.end()
	r.sourceEnds()
	r.clean()
}

// sourceEnds waits until the source's process has ended.
func (r *rig) sourceEnds() {
	r.t.Helper()
	r.eventually("source's process to end", func() bool { return r.sh(r.l.A, "pgrep -f 'lazymig [s]ource'; true") == "" })
}

// journald stands for one: what its only stream is told goes to /srv/log, and /srv/over is there when that has ended.
func (r *rig) journald(h *lab.Host) *lab.Proc {
	r.t.Helper()
	r.sh(h, "mkdir -p /run/systemd/journal")
	j := r.spawn(h, "/usr/bin/python3", "-c", `
import socket
s = socket.socket(socket.AF_UNIX)
s.bind("/run/systemd/journal/stdout")
s.listen()
c, _ = s.accept()
with open("/srv/log", "ab", 0) as out:
    while chunk := c.recv(65536):
        out.write(chunk)
open("/srv/over", "w")
`)
	r.eventually("journald's socket", func() bool { return r.sh(h, "test -S /run/systemd/journal/stdout && echo there; true") == "there" })
	return j
}

// TestStdioElsewhere: standard output goes to a file of the target, to its journald (for which a listener stands that keeps what it is
// told), or nowhere, and standard input is at its end.
func TestStdioElsewhere(t *testing.T) {
	r := newRig(t, "streams")
	a, b := r.l.A, r.l.B
	for _, to := range []string{"/srv/log", "null", "journal"} {
		t.Run(strings.Trim(to, "/"), func(t *testing.T) {
			defer func(old *testing.T) { r.t = old }(r.t)
			r.t = t
			r.sh(a, "rm -f /srv/ctl /srv/out /srv/stop /srv/fed")
			s := r.startStreams("cat /srv/ctl | $PROG | cat >/srv/out")
			if to == "journal" {
				if m := r.try(a, b, s.pid, "--stdio", to); m.code != 4 || !strings.Contains(m.stderr, "no journald") {
					t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
				}
				s.goesOn()
				j := r.journald(b)
				defer j.Close()
			}
			r.sh(b, "echo before >/srv/log")
			pid, _ := r.move(a, b, s.pid, "--stdio", to)
			r.eventually("program to end, because its input has", func() bool { return r.sh(b, fmt.Sprintf("test -d /proc/%d; echo $?", pid)) == "1" })
			r.sourceEnds()
			lines := strings.Split(r.sh(b, "cat /srv/log"), "\n")
			last := s.out()
			switch to {
			case "null":
				if len(lines) != 1 {
					t.Errorf("the log has %d lines", len(lines))
				}
			case "journal":
				if got := strings.Join(lines[:8], ","); got != "before,streams,,6,1,0,0,0" {
					t.Errorf("journald is told %q", got)
				}
				fallthrough
			default:
				if lines[0] != "before" || !strings.HasPrefix(lines[len(lines)-1], "end ") {
					t.Errorf("the log begins with %q and ends with %q", lines[0], lines[len(lines)-1])
				}
				if strings.HasPrefix(last[len(last)-1], "end ") {
					t.Error("the last line is on the source, too")
				}
			}
			r.clean()
			r.sh(a, "touch /srv/stop; pkill -x cat; true")
		})
	}
}

// TestStdioAgentKilled: a tree whose output the agent carried waits when that is killed; no SIGPIPE, no end of file.
func TestStdioAgentKilled(t *testing.T) {
	r := newHosts(t, "streams")
	ag := r.agent(r.l.B)
	s := r.startStreams("cat /srv/ctl | $PROG | cat >/srv/out")
	pid, _ := r.move(r.l.A, r.l.B, s.pid)
	s.goesOn()
	r.sh(r.l.B, "pkill -KILL -f 'lazymig [a]gent'")
	_ = ag.cmd.Wait() // killed
	r.eventually("tree to wait with a full pipe", func() bool {
		return strings.Contains(r.sh(r.l.B, fmt.Sprintf("cat /proc/%d/task/*/wchan", pid)), "pipe_write")
	})
	r.sh(r.l.A, "touch /srv/stop")
	r.end(r.l.B, pid, "KILL")
	r.removeGroups()
}

// removeGroups removes the cgroups of capsules whose agent was killed after the grant: no later agent touches them.
func (r *rig) removeGroups() {
	r.t.Helper()
	root := kerneltest.CgroupRoot(r.t)
	r.eventually("cgroups of the capsule to be empty", func() bool {
		dirs, _ := filepath.Glob(filepath.Join(root, "lazymig-*-dst", "*")) // the patterns are good
		for _, d := range dirs {
			_ = unix.Rmdir(d) // a process is still ending there
		}
		tops, _ := filepath.Glob(filepath.Join(root, "lazymig-*-dst"))
		for _, d := range tops {
			_ = unix.Rmdir(d)
		}
		tops, _ = filepath.Glob(filepath.Join(root, "lazymig-*-dst"))
		return len(tops) == 0
	})
}

// TestStdioBuffered moves a process whose streams are full of bytes that nobody has read: they stay where they are, and come once.
func TestStdioBuffered(t *testing.T) {
	r := newRig(t)
	a, b := r.l.A, r.l.B
	py := r.script("buffered.py")
	for _, kind := range []string{"pipe", "socket"} {
		t.Run(kind, func(t *testing.T) {
			defer func(old *testing.T) { r.t = old }(r.t)
			r.t = t
			r.sh(a, "rm -f /srv/*")
			r.spawn(a, "/usr/bin/python3", py, kind)
			r.eventually("shell to be ready", func() bool { return r.sh(a, "test -e /srv/ready -a -s /srv/pid && echo y; true") == "y" })
			root, err := strconv.Atoi(r.sh(a, "cat /srv/pid"))
			if err != nil {
				t.Fatal(err)
			}
			pid, _ := r.move(a, b, root)
			r.sh(b, fmt.Sprintf("kill -USR1 %d", pid))
			r.sh(a, "touch /srv/go")
			r.eventually("end of the output", func() bool { return r.sh(a, "test -e /srv/over && echo y; true") == "y" })
			if got, want := r.sh(a, "cat /srv/out"), r.sh(a, "seq 1 3000; echo early 1; echo early 2; echo late; echo over"); got != want {
				t.Errorf("%d bytes came, want %d: …%q", len(got), len(want), got[max(0, len(got)-60):])
			}
			r.sourceEnds()
			r.clean()
		})
	}
}
