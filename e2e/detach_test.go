package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/lab"
)

// detach moves a tree, files and all; where its root is on the target is the second result.
func (r *rig) detach(from, to *lab.Host, pid int, args ...string) (int, string) {
	r.t.Helper()
	pid, m := r.move(from, to, pid, append([]string{"--until", "detached"}, args...)...)
	d := m.get("detached")
	if d == nil {
		r.t.Fatalf("no detached event among %+v", m.events)
	}
	r.t.Logf("detached: %.1f ms, %.1f of them settling; %d descriptors, %d mappings, %d files, %d bytes", d.StopMS, d.SettleMS, d.Descriptors, d.Mappings, d.FilesMoved, d.FileBytes)
	return pid, "/var/lib/lazymig/" + d.ID + ".target/root"
}

// locals declares all that a host's root holds but /srv to be the target's own: most of it is the machine's, which both hosts of the lab share.
func (r *rig) locals(from, to *lab.Host) (args []string) {
	r.t.Helper()
	dirs := strings.Fields(r.sh(from, `cd /; for d in *; do [ -d $d -a ! -L $d ] && echo /$d; done | grep -vxE '/(srv|dev|proc|sys)'`))
	r.sh(to, "mkdir -p "+strings.Join(dirs, " "))
	for _, d := range dirs {
		args = append(args, "--local", d)
	}
	return args
}

// strand takes away what a detached tree must not need: the agent, and the network between the hosts.
func (r *rig) strand(to *lab.Host) {
	r.t.Helper()
	a := r.agents[to]
	if err := a.cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	_ = a.cmd.Wait() // killed
	r.eventually("the agent's starter to end", func() bool { return r.sh(to, "pgrep -f 'lazymig [s]tarter'; true") == "" })
	if err := r.l.CutLink(r.ctx); err != nil {
		r.t.Fatal(err)
	}
}

// alone demands that nothing of FUSE and nothing of lazymig is left of a detached tree but a bare init.
func (r *rig) alone(h *lab.Host, pid int) {
	r.t.Helper()
	m := regexp.MustCompile(`"time":"([^"]+)".*"connection":([0-9]+)`).FindStringSubmatch(r.agents[h].log.String())
	if m == nil {
		r.t.Fatal("the agent does not tell its FUSE connection")
	}
	// The number may be another mount's by now: that of another lab, say. Its directory is as old as the connection.
	out := r.sh(h, fmt.Sprintf(`c=$(stat -c %%Z /sys/fs/fuse/connections/%s 2>/dev/null) && test $c -lt $(date -d %s +%%s) && echo FUSE connection
for p in /proc/[0-9]*; do
	case "$(readlink $p/exe)" in *lazymig) echo $p $(tr '\\0' ' ' <$p/cmdline);; esac
	for f in $p/fd/* $p/exe $p/cwd $p/root; do case "$(stat -Lfc %%T $f 2>/dev/null)" in fuse*) echo $f;; esac; done
	grep -H fuse.lazymig $p/mountinfo 2>/dev/null
done; true`, m[2], m[1]))
	if out != "" {
		r.t.Errorf("left on %s:\n%s", h.Name, out)
	}
	if out := r.sh(h, fmt.Sprintf("p=$(awk '/^PPid/{print $2}' /proc/%d/status); cat /proc/$p/comm; ls /proc/$p/fd", pid)); out != "init" {
		r.t.Errorf("the parent of the tree, and its descriptors: %q", out)
	}
}

// over demands that the next agent takes away what an ended tree has left, when its agent is gone.
func (r *rig) over(h *lab.Host) {
	r.t.Helper()
	r.agent(h)
	r.clean()
}

func TestDetachChecker(t *testing.T) {
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	r.sh(a, "mkdir /srv/bin; cp "+r.dir+"/checker /srv/bin")
	p := r.spawn(a, "/srv/bin/checker", "64", "4", "/srv/status")
	r.eventually("checker to check", func() bool { w, _ := r.status(a, "/srv/status"); return w == "run" })
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	r.strand(b)
	r.alone(b, pid)
	r.goesOn(b, root+"/srv/status")
	if s := r.states(a); len(s) != 1 || s[0] != "source detached" {
		t.Errorf("records of A: %q", s)
	}
	if s := r.states(b); len(s) != 1 || s[0] != "target detached" {
		t.Errorf("records of B: %q", s)
	}
	r.ended(b, b, pid, root+"/srv/status")
	r.over(b)
}

// TestDetachPython detaches a python3 with all kinds of kernel objects, which then imports modules that it has never opened.
func TestDetachPython(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.spawn(a, "/usr/bin/python3", r.script("kernelobjects.py"), "/srv/py")
	r.says(a, "python3 to be ready", "cat /srv/py/verdict", "ready")
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	r.strand(b)
	r.alone(b, pid)
	for range 2 {
		r.sh(b, fmt.Sprintf("echo ready > %s/srv/py/verdict; kill -USR1 %d", root, pid))
		r.eventually("verdict", func() bool {
			out := r.sh(b, "cat "+root+"/srv/py/verdict")
			return out != "ready" && out != ""
		})
		if v := r.sh(b, "cat "+root+"/srv/py/verdict"); v != "OK" {
			t.Fatalf("python3 says: %s\n%s", v, r.sh(b, "cat "+root+"/srv/py/trace"))
		}
	}
	r.end(b, pid, "KILL")
	r.over(b)
}

// TestDetachRedis detaches a Redis, which forks and rewrites its file after it.
func TestDetachRedis(t *testing.T) {
	kerneltest.NeedProgram(t, "redis-server")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.spawn(a, "/bin/sh", "-c", "mkdir -p /srv/redis; exec redis-server --dir /srv/redis --appendonly yes --save '' --enable-debug-command yes --logfile /srv/redis/log")
	r.says(a, "Redis to answer", "redis-cli debug populate 20000 key 500", "OK")
	digest := r.sh(a, "redis-cli debug digest")
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	r.strand(b)
	r.alone(b, pid)
	if got := r.sh(b, "redis-cli debug digest"); got != digest {
		t.Fatalf("digest is %s on B, was %s", got, digest)
	}
	r.sh(b, "redis-cli set after move && redis-cli bgrewriteaof")
	r.says(b, "append-only file to be rewritten", "redis-cli info persistence | grep -c aof_rewrite_in_progress:0", "1")
	r.sh(b, "redis-cli shutdown; true")
	r.eventually("end of Redis", func() bool { return r.sh(b, fmt.Sprintf("test -d /proc/%d; echo $?", pid)) == "1" })
	// Started again from its files alone, as its own script would.
	again := r.spawn(b, "/usr/bin/redis-server", "--dir", root+"/srv/redis", "--appendonly", "yes", "--enable-debug-command", "yes", "--logfile", root+"/srv/redis/log")
	r.says(b, "Redis to have the key", "redis-cli get after", "move")
	r.end(b, again.Pid, "TERM")
	r.over(b)
}

// TestDetachRefused leaves a tree drained, and says why, if a path is to be the target's own and the source's as well. Nothing that was to be removed from the
// source in the end is.
func TestDetachRefused(t *testing.T) {
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	r.sh(a, givenFiles)
	ch := r.checker(a, 32, 2)
	m := r.try(a, b, ch.proc.Pid, append(r.locals(a, b), "--local", "/srv", "--with", "/srv/data", "--remove-source-files", "--until", "detached")...)
	if left := r.sh(a, "cd /srv/data && find . | wc -l"); left != "7" {
		t.Errorf("of 7 names on the source %s are left", left)
	}
	if m.code != 5 || !strings.Contains(m.stderr, "/srv") {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	t.Log(m.stderr)
	r.goesOn(a, ch.status)
	if s := r.states(b); len(s) != 1 || s[0] != "target drained" {
		t.Errorf("records of B: %q", s)
	}
	ch.verdict(a, b, m.get("resumed").TargetPID)
	r.clean()
}

// TestDetachRoundTrip detaches a tree on B, and then on A again: it leaves a capsule without a guardian, and a root of its own.
func TestDetachRoundTrip(t *testing.T) {
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	r.agent(a)
	r.sh(a, "mkdir /srv/bin; cp "+r.dir+"/checker /srv/bin")
	p := r.spawn(a, "/srv/bin/checker", "16", "2", "/srv/status")
	r.eventually("checker to check", func() bool { w, _ := r.status(a, "/srv/status"); return w == "run" })
	local := r.locals(a, b)
	pid, root := r.detach(a, b, p.Pid, local...)
	r.goesOn(b, root+"/srv/status")
	pid, root = r.detach(b, a, pid, local...)
	r.goesOn(a, root+"/srv/status")
	r.ended(a, a, pid, root+"/srv/status")
	r.clean()
}

// TestBwLimit: memory and files that nobody waits for come no faster than the rate that they share.
func TestBwLimit(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newHosts(t)
	a, b := r.l.A, r.l.B
	r.agent(b)
	p := r.spawn(a, "/usr/bin/python3", "-c", `
import os, time
b = os.urandom(32 << 20)
os.makedirs("/srv/limited")
f = open("/srv/limited/f", "wb+")
f.write(b[:16 << 20])
f.flush()
open("/srv/ready", "w")
while not os.path.exists("/srv/end"): time.sleep(0.1)
f.seek(0)
open("/srv/limited/verdict", "w").write(str(f.read() == b[:16 << 20]))
time.sleep(1000)`)
	r.eventually("python3 to be ready", func() bool { return r.sh(a, "ls /srv/ready 2>/dev/null; true") != "" })
	pid, m := r.move(a, b, p.Pid, append(r.locals(a, b), "--until", "detached", "--bwlimit", "16M")...)
	m.fewTrips(t) // not even for a big file that is open for writing
	drained, detached, files := m.get("drained"), m.get("detached"), m.get("files")
	if drained == nil || detached == nil || files == nil {
		t.Fatalf("events %+v", m.events)
	}
	if drained.DrainMS < 1500 {
		t.Errorf("32 MB of memory at 16 MB/s were there after %.0f ms", drained.DrainMS)
	}
	if d := detached.Time.Sub(drained.Time); d < 800*time.Millisecond {
		t.Errorf("16 MB of files at 16 MB/s were there after %v", d)
	}
	root := "/var/lib/lazymig/" + detached.ID + ".target/root"
	r.sh(b, "touch "+root+"/srv/end")
	r.says(b, "verdict", "cat "+root+"/srv/limited/verdict", "True")
	r.end(b, pid, "TERM")
	r.clean()
}

// TestDetachEarly detaches a tree whose frozen source is still there, with its files open for writing.
func TestDetachEarly(t *testing.T) {
	r := newHosts(t, "checker")
	a, b := r.l.A, r.l.B
	gate := r.dir + "/gate"
	r.sourceEnv = []string{"LAZYMIG_PARK=hold:" + gate}
	ag := r.agent(b)
	ch := r.checker(a, 16, 2)
	g := r.begin(a, b, ch.proc.Pid, append(r.locals(a, b), "--until", "detached")...)
	r.eventually("tree to leave its source's files", func() bool { return strings.Contains(ag.log.String(), `"msg":"detached"`) })
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := g.wait()
	d := m.get("detached")
	if m.code != 0 || d == nil {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	status := "/var/lib/lazymig/" + d.ID + ".target/root" + ch.status
	r.goesOn(b, status)
	r.ended(b, b, m.get("resumed").TargetPID, status)
	r.clean()
}

// TestDetachCut cuts the network where the tree is about to be stopped: it goes on as before, and is detached when its source answers again, or
// stays drained if that takes too long.
func TestDetachCut(t *testing.T) {
	r := newHosts(t, "checker")
	a, b := r.l.A, r.l.B
	gate := r.dir + "/gate"
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=detach:" + gate})
	ch := r.checker(a, 16, 2)
	g := r.begin(a, b, ch.proc.Pid, append(r.locals(a, b), "--until", "detached")...)
	r.eventually("agent to park", func() bool { return strings.Contains(ag.log.String(), "parked") })
	if err := r.l.CutLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.eventually("the switch to fail", func() bool { return strings.Contains(ag.log.String(), "can't leave its source's files yet") })
	if s := r.states(b); len(s) != 1 || s[0] != "target drained" {
		t.Errorf("records of B: %q", s)
	}
	if err := r.l.RestoreLink(r.ctx); err != nil {
		t.Fatal(err)
	}
	m := g.wait()
	on, status := a, ch.status
	if d := m.get("detached"); m.code == 0 && d != nil {
		on, status = b, "/var/lib/lazymig/"+d.ID+".target/root"+ch.status
	} else if m.code != 5 || m.get("stays") == nil {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.goesOn(on, status)
	r.ended(on, b, m.get("resumed").TargetPID, status)
	r.clean()
}
