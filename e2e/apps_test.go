package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/lab"
)

// script puts a file of testdata where both hosts see it.
func (r *rig) script(name string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err == nil {
		err = os.WriteFile(filepath.Join(r.dir, name), b, 0o755)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return filepath.Join(r.dir, name)
}

// says waits until a command on h prints want.
func (r *rig) says(h *lab.Host, what, cmd, want string) {
	r.t.Helper()
	last := ""
	defer func() {
		if r.t.Failed() {
			r.t.Logf("%s says %q", cmd, last)
		}
	}()
	r.eventually(what, func() bool {
		out, err := h.Command(r.ctx, "/bin/sh", "-c", cmd).CombinedOutput()
		last = strings.TrimSpace(string(out))
		return err == nil && last == want
	})
}

// TestKernelObjects moves a python3 with a child, threads, timers, signals, locks, sockets, pipes, watches and mappings, and lets it check itself.
func TestKernelObjects(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.spawn(a, "/usr/bin/python3", r.script("kernelobjects.py"), "/srv/py")
	r.says(a, "python3 to be ready", "cat /srv/py/verdict", "ready")
	check := func(h *lab.Host, pid int) {
		t.Helper()
		r.sh(a, "echo asked > /srv/py/asked; true")
		r.sh(h, fmt.Sprintf("kill -USR1 %d", pid))
		defer func() {
			if t.Failed() {
				t.Logf("python3's trace: %s", r.sh(a, "cat /srv/py/trace /srv/py/verdict.new; true"))
			}
		}()
		r.eventually("verdict", func() bool {
			out := r.sh(a, "cat /srv/py/verdict")
			return out != "ready" && out != ""
		})
		if v := r.sh(a, "cat /srv/py/verdict"); v != "OK" {
			t.Fatalf("python3 says: %s", v)
		}
		r.sh(a, "echo ready > /srv/py/verdict")
	}
	check(a, p.Pid)
	pid, m := r.move(a, b, p.Pid)
	m.fewTrips(t)
	locked := func() string {
		return r.sh(a, `python3 -c "
import fcntl
for n, f in (('locked', fcntl.lockf), ('flocked', fcntl.flock)):
    try: f(open('/srv/py/' + n, 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB); print(n, 'is free')
    except OSError: pass"`)
	}
	if out := locked(); out != "" {
		t.Errorf("locks on A after the drain: %s", out)
	}
	check(b, pid)
	check(b, pid)
	r.end(b, pid, "KILL")
	r.clean()
}

// TestRedisUnderWrites is what the demo shows, by the demo's own tools: a Redis that a client writes to all the time keeps the digest of the keys that
// nobody writes, and every write that was acknowledged.
func TestRedisUnderWrites(t *testing.T) {
	kerneltest.NeedProgram(t, "redis-server")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	demo := filepath.Join(r.dir, "lazymig-demo")
	build := exec.Command("go", "build", "-o", demo, "../cmd/lazymig-demo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build demo: %v\n%s", err, out)
	}
	const keys = " 400000" // of 1,000 bytes; the demo moves 1 GB
	p := r.spawn(a, "/bin/sh", "-c", "mkdir -p /srv/redis; exec redis-server --dir /srv/redis --appendonly yes --save '' --bind 0.0.0.0 --protected-mode no --enable-debug-command yes --logfile /srv/redis/log")
	r.sh(a, demo+" fill "+a.Addr+keys)
	digest := r.sh(a, demo+" digest "+a.Addr+keys)
	client := a.Command(r.ctx, demo, "client", a.Addr, b.Addr)
	var said, wrong logBuffer
	client.Stdout, client.Stderr = &said, &wrong
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	r.says(a, "client to write", "redis-cli exists client:1", "1")
	pid, m := r.move(a, b, p.Pid)
	m.fewTrips(t)
	if got := r.sh(b, demo+" digest "+b.Addr+keys); got != digest {
		t.Errorf("digest is %s on B, was %s", got, digest)
	}
	if err := errors.Join(client.Process.Signal(syscall.SIGTERM), client.Wait()); err != nil {
		t.Fatalf("client: %v\n%s", err, wrong.String())
	}
	var report struct{ Acked, OnB, Lost, Wrong int }
	if err := json.Unmarshal([]byte(said.String()), &report); err != nil {
		t.Fatalf("client says %q: %v", said.String(), err)
	}
	if t.Logf("client: %s", said.String()); report.Lost+report.Wrong > 0 || report.OnB == 0 || report.OnB == report.Acked {
		t.Errorf("client: %+v", report)
	}
	r.sh(b, demo+" stop "+b.Addr)
	r.eventually("end of Redis", func() bool { return r.sh(b, fmt.Sprintf("test -d /proc/%d; echo $?", pid)) == "1" })
	r.clean()
}

// TestRedis moves a Redis that nobody writes to, and goes on with it on B.
func TestRedis(t *testing.T) {
	kerneltest.NeedProgram(t, "redis-server")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.spawn(a, "/bin/sh", "-c", "mkdir -p /srv/redis; exec redis-server --dir /srv/redis --appendonly yes --save '' --enable-debug-command yes --logfile /srv/redis/log")
	r.says(a, "Redis to answer", "redis-cli debug populate 100000 key 500", "OK")
	digest := r.sh(a, "redis-cli debug digest")
	pid, m := r.move(a, b, p.Pid)
	m.fewTrips(t)
	if got := r.sh(b, "redis-cli debug digest"); got != digest {
		t.Fatalf("digest is %s on B, was %s", got, digest)
	}
	r.sh(b, "redis-cli set after move && redis-cli bgrewriteaof")
	r.says(b, "append-only file to be rewritten", "redis-cli info persistence | grep -c aof_rewrite_in_progress:0", "1")
	if out := r.sh(a, "timeout 10 redis-cli -h 127.0.0.1 ping 2>&1; true"); !strings.Contains(out, "refused") {
		t.Errorf("A still answers: %q", out)
	}
	r.sh(b, "redis-cli shutdown; true")
	r.eventually("end of Redis", func() bool { return r.sh(b, fmt.Sprintf("test -d /proc/%d; echo $?", pid)) == "1" })
	r.clean()
}

// TestNode moves a node process with a timer, a growing heap and an HTTP server.
func TestNode(t *testing.T) {
	kerneltest.NeedProgram(t, "node")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	js := `const h=require("http"),m=new Map();let n=0;for(let i=0;i<200000;i++)m.set("k"+i,{i,s:"v".repeat(i%50)});setInterval(()=>{n++},5);
h.createServer((q,s)=>{let x=0;for(const v of m.values())x+=v.i+v.s.length;s.end(q.url=="/n"?""+n:""+x)}).listen(8124)`
	p := r.spawn(a, "/usr/bin/env", "UV_USE_IO_URING=0", "node", "-e", js)
	get := func(h *lab.Host, url string) string {
		out, _ := h.Command(r.ctx, "/usr/bin/python3", "-c", fmt.Sprintf("import urllib.request as u; print(u.urlopen('http://127.0.0.1:8124/%s', timeout=20).read().decode())", url)).Output()
		return strings.TrimSpace(string(out))
	}
	var sum string
	r.eventually("node to answer", func() bool { sum = get(a, ""); return sum != "" })
	pid, _ := r.move(a, b, p.Pid)
	if got := get(b, ""); got != sum {
		t.Fatalf("node says %q on B, said %q", got, sum)
	}
	n := get(b, "n")
	r.eventually("node's timer to go on", func() bool { return get(b, "n") != n })
	r.end(b, pid, "KILL")
	r.clean()
}

// TestNginx moves nginx: a master with workers, and files that it serves.
func TestNginx(t *testing.T) {
	kerneltest.NeedProgram(t, "nginx")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	conf := "worker_processes 2; daemon off; pid /srv/ng/pid; error_log /srv/ng/err; user root; events {} http { access_log /srv/ng/acc; client_body_temp_path /srv/ng/t1; proxy_temp_path /srv/ng/t2; fastcgi_temp_path /srv/ng/t3; uwsgi_temp_path /srv/ng/t4; scgi_temp_path /srv/ng/t5; server { listen 8125; root /srv/ng/www; } }"
	p := r.spawn(a, "/bin/sh", "-c", "mkdir -p /srv/ng/www; echo hello from A >/srv/ng/www/x; echo '"+conf+"' >/srv/ng/conf; exec nginx -c /srv/ng/conf >/srv/ng/out 2>&1 </dev/null")
	fetch := `python3 -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8125/x', timeout=20).read().decode().strip())"`
	r.says(a, "nginx to answer", fetch, "hello from A")
	pid, _ := r.move(a, b, p.Pid)
	r.says(b, "nginx to answer on B", fetch, "hello from A")
	r.sh(b, fmt.Sprintf("kill -HUP %d", pid)) // new workers
	r.says(b, "nginx to answer after a reload", fetch, "hello from A")
	r.end(b, pid, "TERM")
	r.clean()
}

// TestJVM moves a JVM with G1 that builds, drops and checks objects.
func TestJVM(t *testing.T) {
	kerneltest.NeedProgram(t, "java")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.spawn(a, "/bin/sh", "-c", "mkdir -p /srv/java; cp "+r.script("Churn.java")+" /srv/java/Churn.java; cd /srv/java; exec java -XX:+UseG1GC -Xmx256m -XX:-UsePerfData Churn.java /srv/java/status >/srv/java/out 2>&1 </dev/null")
	r.goesOn(a, "/srv/java/status")
	pid, _ := r.move(a, b, p.Pid)
	r.goesOn(a, "/srv/java/status")
	r.ended(a, b, pid, "/srv/java/status")
	r.clean()
}
