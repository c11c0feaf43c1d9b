package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

func TestMain(m *testing.M) {
	MaybeInit()
	if len(os.Args) == 2 && os.Args[1] == "hold-forever" {
		holdForever()
	}
	kerneltest.Main(m)
}

// up makes a lab that the test takes down.
func up(t *testing.T, o Options) *Lab {
	t.Helper()
	kerneltest.Need(t, kerneltest.Root, kerneltest.TimeNS)
	kerneltest.Leaks(t)
	// A stray descriptor, as a careless shell leaves it to all its children.
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// sh runs a shell command in a host and returns what it prints.
func sh(t *testing.T, h *Host, script string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := h.Command(t.Context(), "sh", "-ec", script)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("on %s: %s: %v\n%s%s", h.Name, script, err, out, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// What makes two hosts two; one lab for all of it, making one takes a moment.
func TestHosts(t *testing.T) {
	share := t.TempDir()
	if err := os.WriteFile(filepath.Join(share, "hello"), []byte("shared"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := up(t, Options{Share: []string{share}})

	t.Run("namespaces", func(t *testing.T) {
		for _, ns := range []string{"mnt", "pid", "net", "uts", "ipc", "time"} {
			seen := map[string]string{}
			for who, pid := range map[string]int{"machine": os.Getpid(), "A": l.A.Pid, "B": l.B.Pid} {
				id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
				if err != nil {
					t.Fatal(err)
				}
				if other, dup := seen[id]; dup {
					t.Errorf("%s and %s share the %s namespace", who, other, ns)
				}
				seen[id] = who
			}
			// A command is in the same as init.
			if got, want := sh(t, l.B, "readlink /proc/self/ns/"+ns), sh(t, l.B, "readlink /proc/1/ns/"+ns); got != want {
				t.Errorf("%s: command in %s, init in %s", ns, got, want)
			}
		}
	})
	t.Run("names", func(t *testing.T) {
		if a, b := sh(t, l.A, "uname -n"), sh(t, l.B, "uname -n; cat /etc/hostname"); a != "lab-a" || b != "lab-b\nlab-b" {
			t.Errorf("names %q, %q", a, b)
		}
		if c := sh(t, l.A, "cat /proc/1/comm"); c != argInit {
			t.Errorf("init is called %q", c)
		}
	})
	t.Run("clocks", func(t *testing.T) {
		uptime := func(h *Host) float64 {
			f, err := strconv.ParseFloat(strings.Fields(sh(t, h, "cat /proc/uptime"))[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		// B is asked between two looks at A: exact bounds, however slow the machine is.
		before := uptime(l.A)
		b := uptime(l.B)
		after := uptime(l.A)
		if b < before+offset-0.02 || b > after+offset+0.02 {
			t.Errorf("A %.2f … %.2f, B %.2f, want %d s ahead", before, after, b, offset)
		}
	})
	t.Run("pids", func(t *testing.T) {
		a, b := atoi(t, sh(t, l.A, "echo $$")), atoi(t, sh(t, l.B, "echo $$"))
		if a < 1000 || a >= 20000 || b < 20000 {
			t.Errorf("PIDs %d on A, %d on B", a, b)
		}
	})
	t.Run("files", func(t *testing.T) {
		// What A has of its own, B and the machine do not see.
		for _, d := range []string{"/srv", "/tmp", "/run", "/dev/shm", "/var/lib/lazymig"} {
			name := filepath.Join(d, "only-on-a-"+strconv.Itoa(os.Getpid()))
			sh(t, l.A, "echo x > "+name)
			if out := sh(t, l.B, "test ! -e "+name+" || echo seen"); out != "" {
				t.Errorf("B sees A's %s", name)
			}
			if _, err := os.Stat(name); err == nil {
				t.Errorf("the machine sees A's %s", name)
			}
			if _, err := os.Stat(l.A.Path(name)); err != nil {
				t.Errorf("the host's Path: %v", err)
			}
		}
		for _, d := range []string{"/home", "/root", "/var/lib", "/etc"} {
			name := filepath.Join(d, "only-on-b-"+strconv.Itoa(os.Getpid()))
			sh(t, l.B, "echo x > "+name)
			if _, err := os.Stat(name); err == nil {
				t.Errorf("the machine sees B's %s", name)
			}
		}
		for _, d := range []string{"/usr", "/opt", "/bin"} {
			if out, err := l.B.Command(t.Context(), "touch", d+"/x").CombinedOutput(); err == nil || !bytes.Contains(out, []byte("Read-only")) {
				t.Errorf("B writes to %s: %v: %s", d, err, out)
			}
		}
		for _, h := range []*Host{l.A, l.B} {
			if got := sh(t, h, "cat "+share+"/hello"); got != "shared" {
				t.Errorf("%s: share holds %q", h.Name, got)
			}
			if err := h.Command(t.Context(), "touch", share+"/x").Run(); err == nil {
				t.Errorf("%s writes to the share", h.Name)
			}
		}
		kerneltest.NeedProgram(t, "dpkg-query")
		if got := sh(t, l.B, "dpkg-query -W -f '${db:Status-Status}' dpkg"); got != "installed" {
			t.Errorf("B does not know what is installed: %q", got)
		}
		// Programs that read the machine's configuration work on B.
		if got := sh(t, l.B, "getent passwd root | cut -d: -f3; stat -c %a /tmp; tty >/dev/null || test -c /dev/ptmx && echo pty"); got != "0\n1777\npty" {
			t.Errorf("B: %q", got)
		}
	})
	t.Run("machine's files are gone from B", func(t *testing.T) {
		root := kerneltest.RepoRoot(t)
		if out := sh(t, l.B, "test ! -e "+root+"/go.mod || echo seen"); out != "" {
			t.Errorf("B sees %s", root)
		}
		for l := range strings.Lines(sh(t, l.B, "cat /proc/self/mountinfo")) {
			if f := strings.Fields(l); strings.HasPrefix(f[4], "/..") {
				t.Errorf("the old root is still mounted: %s", l)
			}
		}
	})
	t.Run("cgroup2", func(t *testing.T) {
		const where = `awk '$(NF-2)=="cgroup2" {print $5}' /proc/self/mountinfo | head -n1`
		a, b := sh(t, l.A, where), sh(t, l.B, where)
		if a == "" || a != b {
			t.Fatalf("cgroup v2 at %q on A, %q on B", a, b)
		}
		name := a + "/labtest-" + strconv.Itoa(os.Getpid())
		sh(t, l.B, "mkdir "+name)
		defer sh(t, l.B, "rmdir "+name)
		if out := sh(t, l.A, "cat "+name+"/cgroup.freeze"); out != "0" {
			t.Errorf("A sees B's cgroup as %q", out)
		}
	})
	t.Run("network", func(t *testing.T) {
		if out := sh(t, l.A, "ls /sys/class/net | sort | tr '\n' ' '"); out != "eth0 lo" {
			t.Errorf("devices %q", out)
		}
		exchange(t, l)
		if err := l.CutLink(t.Context()); err != nil {
			t.Fatal(err)
		}
		if out := sh(t, l.A, "cat /sys/class/net/eth0/operstate"); out != "down" {
			t.Errorf("link is %q after the cut", out)
		}
		if err := l.RestoreLink(t.Context()); err != nil {
			t.Fatal(err)
		}
		exchange(t, l)
	})
}

// exchange sends bytes from A to B over TCP.
func exchange(t *testing.T, l *Lab) {
	t.Helper()
	kerneltest.NeedProgram(t, "python3")
	server := l.B.Command(t.Context(), "python3", "-uc", `
import socket
s = socket.create_server(("`+l.B.Addr+`", 0))
print(s.getsockname()[1])
c, peer = s.accept()
print(peer[0], c.makefile().readline(), end="")
`)
	var stderr bytes.Buffer
	server.Stderr = &stderr
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	port, err := lines.ReadString('\n')
	if err != nil {
		t.Fatalf("server: %v\n%s", err, stderr.Bytes())
	}
	addr := net.JoinHostPort(l.B.Addr, strings.TrimSpace(port))
	sh(t, l.A, `python3 -c '
import socket, sys
host, port = sys.argv[1].split(":")
socket.create_connection((host, int(port))).sendall(b"over\n")
' `+addr)
	got, _ := lines.ReadString('\n')
	if err := server.Wait(); err != nil || got != l.A.Addr+" over\n" {
		t.Errorf("B received %q, %v\n%s", got, err, stderr.Bytes())
	}
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// patience is a generous deadline: it ends a hang.
func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), kerneltest.Patience)
	t.Cleanup(cancel)
	return ctx
}

func TestDisk(t *testing.T) {
	l := up(t, Options{Disk: true})
	for _, h := range []*Host{l.A, l.B} {
		sh(t, h, "echo "+h.Name+" > /srv/x; echo "+h.Name+" > /var/lib/lazymig/x")
	}
	for _, h := range []*Host{l.A, l.B} {
		if out := sh(t, h, "cat /srv/x /var/lib/lazymig/x | tr -d '\n'"); out != h.Name+h.Name {
			t.Errorf("%s reads %q", h.Name, out)
		}
	}
}
