package preflight

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestApplications starts programs that are known to migrate, idle and as they come. None may be refused.
func TestApplications(t *testing.T) {
	port := func() string {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, p, _ := net.SplitHostPort(l.Addr().String())
		return p
	}
	for name, run := range map[string]func(t *testing.T) *victim{
		"redis-server": func(t *testing.T) *victim {
			kerneltest.NeedProgram(t, "redis-server")
			return serve(t, t.TempDir(), nil, "/s", "redis-server", "--port", port(), "--bind", "127.0.0.1", "--unixsocket", "s", "--appendonly", "yes", "--io-threads", "2")
		},
		"python3": func(t *testing.T) *victim {
			kerneltest.NeedProgram(t, "python3")
			return start(t, nil, "python3", "-c", `
import asyncio, threading, multiprocessing, sys, socket
a, b = socket.socketpair()
threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
p = multiprocessing.Process(target=lambda: threading.Event().wait(), daemon=True); p.start()
async def main():
    s = await asyncio.start_server(lambda r, w: None, '127.0.0.1', 0)
    print('ready', flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
p.terminate()`)
		},
		"node": func(t *testing.T) *victim {
			kerneltest.NeedProgram(t, "node")
			return start(t, nil, "node", "-e", `
const w = new (require('worker_threads').Worker)('setInterval(()=>{},1000)', {eval: true});
w.on('online', () => require('net').createServer().listen(0, '127.0.0.1', () => console.log('ready')));
process.stdin.resume(); process.stdin.on('end', () => process.exit(0));`)
		},
		"nginx": func(t *testing.T) *victim {
			kerneltest.NeedProgram(t, "nginx")
			dir := t.TempDir()
			conf := fmt.Sprintf("daemon off; user root; pid %s/pid; error_log %s/error.log; events {} http { access_log %s/access.log; server { listen 127.0.0.1:%s; listen unix:%s/s; } }", dir, dir, dir, port(), dir)
			if err := os.WriteFile(dir+"/nginx.conf", []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			return serve(t, dir, nil, "/s", "nginx", "-c", dir+"/nginx.conf", "-e", dir+"/error.log")
		},
		"java": func(t *testing.T) *victim {
			kerneltest.NeedProgram(t, "java")
			dir := t.TempDir()
			src := `public class Wait { public static void main(String[] a) throws Exception { System.out.println("ready"); while (System.in.read() >= 0); } }`
			if err := os.WriteFile(dir+"/Wait.java", []byte(src), 0o600); err != nil {
				t.Fatal(err)
			}
			return start(t, nil, "java", "-XX:+UseG1GC", "-XX:TieredStopAtLevel=1", dir+"/Wait.java")
		},
		"postgres": postgres,
	} {
		t.Run(name, func(t *testing.T) {
			v := run(t)
			r := look(t, Options{PID: v.pid})
			if err := r.Err(); err != nil {
				t.Error(err)
			}
			if r.Has("landlock-unknown") {
				t.Error(r.Findings)
			}
		})
	}
}

// serve starts a daemon in the foreground, with its output in a file, and waits for its socket.
func serve(t *testing.T, dir string, change func(*exec.Cmd), socket, name string, args ...string) *victim {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if change != nil {
		change(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // a master ends its workers
		_ = cmd.Wait()
	})
	kerneltest.Eventually(t, name+" to listen", func() bool {
		c, err := net.Dial("unix", dir+socket)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	return &victim{cmd: cmd, pid: cmd.Process.Pid}
}

// postgres runs in an IPC namespace of its own, because of its SysV segment; without, it is refused.
func postgres(t *testing.T) *victim {
	bin, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	u, err := user.Lookup("postgres")
	if len(bin) == 0 || err != nil {
		t.Fatal("PostgreSQL is not installed")
	}
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	as := func(c *exec.Cmd) {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	initdb := exec.Command(bin[0]+"/initdb", "-D", dir+"/data", "-A", "trust", "-N")
	initdb.Dir, initdb.SysProcAttr = dir, &syscall.SysProcAttr{}
	as(initdb)
	if b, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, b)
	}
	args := []string{"-D", dir + "/data", "-c", "listen_addresses=", "-c", "unix_socket_directories=" + dir}
	refused := serve(t, dir, as, "/.s.PGSQL.5432", bin[0]+"/postgres", args...)
	find(t, look(t, Options{PID: refused.pid}), "sysv-shm", Refuse)
	_ = refused.cmd.Process.Signal(syscall.SIGINT)
	_, _ = refused.cmd.Process.Wait()
	return serve(t, dir, func(c *exec.Cmd) {
		as(c)
		c.SysProcAttr.Cloneflags = syscall.CLONE_NEWIPC
	}, "/.s.PGSQL.5432", bin[0]+"/postgres", args...)
}
