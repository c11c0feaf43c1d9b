package preflight

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestOptions shows the options that are set by themselves, each by a process that needs it.
func TestOptions(t *testing.T) {
	plain := look(t, Options{PID: mode(t, "plain").pid}).Want
	if plain.ShellJob || plain.TCPClose || len(plain.Datagrams) > 0 || plain.GhostLimit != 0 || len(plain.Fixups) > 0 {
		t.Errorf("a plain process needs options: %+v", plain)
	}
	for _, c := range []struct {
		mode, code string
		set        func(w Want) bool
	}{
		{"deleted", "ghost-file", func(w Want) bool { return w.GhostLimit >= 5<<20 }},
		{"renamed", "link-remap", func(w Want) bool { return w.GhostLimit == 0 }},
		{"tcp_pair", "tcp-established", func(w Want) bool { return w.TCPClose && w.TCPEstablished == 2 && w.TCPInside == 2 }},
	} {
		t.Run(c.mode, func(t *testing.T) {
			r := look(t, Options{PID: mode(t, c.mode, filepath.Join(t.TempDir(), "file")).pid})
			find(t, r, c.code, Info)
			if !c.set(r.Want) {
				t.Errorf("want %+v", r.Want)
			}
			if err := r.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTCP counts a connection to somebody else.
func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	r := look(t, Options{PID: mode(t, "tcp_connect", port).pid})
	if w := r.Want; !w.TCPClose || w.TCPEstablished != 1 || w.TCPInside != 0 {
		t.Errorf("want %+v", w)
	}
	r = look(t, Options{PID: mode(t, "tcp_pair").pid})
	if ls := r.Tree.Listens; len(ls) != 1 || ls[0].Proto != "tcp" || ls[0].Addr != "127.0.0.1" || ls[0].Port == 0 {
		t.Errorf("it listens on %v", ls)
	}
}

// TestAcceptQueue warns of connections that nobody has accepted.
func TestAcceptQueue(t *testing.T) {
	v := mode(t, "tcp_backlog")
	f := find(t, look(t, Options{PID: v.pid}), "accept-queue", Warn)
	if !strings.Contains(f.What, "2 connections") || f.Do == "" {
		t.Error(f)
	}
}

// TestUnixPeers: half of a stream is refused and its other end named; datagrams to a named socket go on.
func TestUnixPeers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v := mode(t, "unix_connect", path)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f := find(t, look(t, Options{PID: v.pid}), "unix-peer", Refuse)
	if !strings.Contains(f.What, "("+itoa(os.Getpid())+")") {
		t.Errorf("it does not name this process: %s", f)
	}
	dgram := filepath.Join(t.TempDir(), "d")
	d, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dgram, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r := look(t, Options{PID: mode(t, "unix_dgram", dgram).pid})
	find(t, r, "unix-datagram", Info)
	if err := r.Err(); err != nil || !slices.Equal(r.Want.Datagrams, []string{dgram}) {
		t.Errorf("datagrams: %v, want %+v", err, r.Want)
	}
}

// TestStdio lists pipes and sockets to others and files not at all.
func TestStdio(t *testing.T) {
	v := mode(t, "plain")
	w := look(t, Options{PID: v.pid}).Want
	seen := map[int]Stdio{}
	for _, s := range w.Stdio {
		seen[s.FD] = s
	}
	if s := seen[0]; s.Kind != "pipe" || !s.Read || s.Write || s.Key != s.Link || !strings.Contains(s.Peer, "("+itoa(os.Getpid())+")") || s.Inode == 0 {
		t.Errorf("standard input is %+v", s)
	}
	if s := seen[1]; s.Kind != "pipe" || s.Read || !s.Write {
		t.Errorf("standard output is %+v", s)
	}
	// As under systemd: standard error is a stream socket, and a copy of it stands elsewhere too.
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	here, there := os.NewFile(uintptr(pair[0]), "here"), os.NewFile(uintptr(pair[1]), "there")
	defer here.Close()
	v = start(t, func(c *exec.Cmd) {
		c.Stderr = there
		c.ExtraFiles = []*os.File{there}
	}, victimPath, "plain")
	there.Close()
	r := look(t, Options{PID: v.pid})
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{2, 3} {
		i := slices.IndexFunc(r.Want.Stdio, func(s Stdio) bool { return s.FD == fd })
		if i < 0 || r.Want.Stdio[i].Kind != "socket" || !strings.HasPrefix(r.Want.Stdio[i].Key, "unix[") {
			t.Errorf("descriptor %d in %+v", fd, r.Want.Stdio)
		}
	}
	// Both sides in the tree: a pipeline.
	v = start(t, nil, "sh", "-c", victimPath+" plain | cat")
	for _, s := range look(t, Options{PID: v.pid}).Want.Stdio {
		if comm, _ := os.ReadFile("/proc/" + itoa(s.PID) + "/comm"); s.FD == 0 && strings.TrimSpace(string(comm)) == "cat" {
			t.Errorf("the pipe inside of the tree is listed: %+v", s)
		}
	}
}

// terminal is a pseudo terminal whose master is here.
func terminal(t *testing.T) (slave string) {
	t.Helper()
	m, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if err := unix.IoctlSetPointerInt(int(m.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(m.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return "/dev/pts/" + itoa(n)
}

// TestTerminal redirects a terminal that is standard error only, and refuses another descriptor of it.
func TestTerminal(t *testing.T) {
	name := terminal(t)
	f := find(t, look(t, Options{PID: mode(t, "pty_file", name).pid}), "tty", Refuse)
	if !strings.Contains(f.What, "("+itoa(os.Getpid())+")") {
		t.Errorf("it does not say who has the master: %s", f)
	}
	tty, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	v := start(t, func(c *exec.Cmd) {
		c.Stderr = tty
		c.SysProcAttr.Setctty, c.SysProcAttr.Ctty = true, 2
	}, victimPath, "plain")
	r := look(t, Options{PID: v.pid})
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	find(t, r, "controlling-tty", Info)
	i := slices.IndexFunc(r.Want.Stdio, func(s Stdio) bool { return s.Kind == "tty" })
	if i < 0 || !r.Want.ShellJob || r.Want.Stdio[i].FD != 2 || !strings.HasPrefix(r.Want.Stdio[i].Key, "tty[") {
		t.Errorf("want %+v", r.Want)
	}
}

// TestSessions: one led from outside, and members that stay behind.
func TestSessions(t *testing.T) {
	v := start(t, func(c *exec.Cmd) { c.SysProcAttr.Setsid = false }, victimPath, "plain")
	r := look(t, Options{PID: v.pid})
	find(t, r, "shell-job", Info)
	if !r.Want.ShellJob || r.Err() != nil {
		t.Errorf("want %+v, %v", r.Want, r.Err())
	}
	v = mode(t, "session_child")
	find(t, look(t, Options{PID: v.pid}), "left-behind", Warn)
}

// TestFileShared warns of a file that both sides write.
func TestFileShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	v := mode(t, "writer", path)
	shared := func() bool { // its standard error may be a file that is shared with the tests
		r := look(t, Options{PID: v.pid})
		if err := r.Err(); err != nil {
			t.Error(err)
		}
		return slices.ContainsFunc(r.Findings, func(f Finding) bool {
			return f.Code == "file-shared" && f.Level == Warn && strings.Contains(f.What, path)
		})
	}
	if shared() {
		t.Error("nobody shares it yet")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if shared() {
		t.Error("a reader does not matter")
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if !shared() {
		t.Error("the other writer was not seen")
	}
}

// TestFixups records what CRIU loses.
func TestFixups(t *testing.T) {
	r := look(t, Options{PID: mode(t, "fixups").pid})
	if len(r.Want.Fixups) != 1 {
		t.Fatalf("fixups %+v", r.Want.Fixups)
	}
	f := r.Want.Fixups[0]
	if !slices.Equal(f.Affinity, []uint64{1}) || f.TimerSlackNS != 123456 || f.IOPrio != 2<<13|7 || !f.KSM || f.TID != r.Tree.Root {
		t.Errorf("fixup %+v", f)
	}
}

// TestTree compares the description of a tree with what its processes are.
func TestTree(t *testing.T) {
	kerneltest.Leaks(t)
	v := start(t, func(c *exec.Cmd) {
		c.SysProcAttr.Cloneflags = syscall.CLONE_NEWUTS
		c.Args = append(c.Args, "hostname other-host; umask 027; exec "+victimPath+" kept")
	}, "sh", "-c")
	tree := look(t, Options{PID: v.pid}).Tree
	if tree.Root != v.pid || len(tree.Tasks) != 3 || tree.ThreadCount != 3 || tree.HostName != "other-host" {
		t.Fatalf("tree %+v", tree)
	}
	if !slices.Equal(tree.Foreign, []string{"uts"}) || tree.Namespaces["net"] == "" {
		t.Errorf("namespaces %v, foreign %v", tree.Namespaces, tree.Foreign)
	}
	root := tree.Tasks[0]
	st, err := readStat("/proc/" + itoa(v.pid))
	if err != nil {
		t.Fatal(err)
	}
	if root.PID != v.pid || root.NSPid != v.pid || root.Comm != "victim" || root.StartTime != st.start || root.Umask != 0o027 || root.UID != 0 || !slices.Equal(root.TIDs, []int{v.pid}) {
		t.Errorf("root %+v", root)
	}
	states := ""
	for _, c := range tree.Tasks[1:] {
		if c.PPID != v.pid {
			t.Errorf("child %+v", c)
		}
		states += c.State
	}
	if !strings.Contains(states, "Z") {
		t.Errorf("no zombie among %q", states)
	}
	if tree.MemoryPresent == 0 || tree.FileBytes == 0 {
		t.Errorf("sizes are missing: %+v", tree)
	}
}

// TestCgroupLimits reads the tightest limits.
func TestCgroupLimits(t *testing.T) {
	var cg Cgroup
	outer, inner := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{
		outer + "/memory.max": "1000000\n", outer + "/pids.max": "max\n", outer + "/cpu.max": "150000 100000\n",
		inner + "/memory.max": "2000000\n", inner + "/pids.max": "50\n", inner + "/cpu.max": "50000 100000\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	readLimits(&cg, inner)
	readLimits(&cg, outer)
	if cg != (Cgroup{MemoryMax: 1000000, PidsMax: 50, CPUMax: "50000 100000"}) {
		t.Errorf("limits %+v", cg)
	}
	// A real cgroup: its path is found.
	dir := kerneltest.CgroupRoot(t)
	name := "lazymig-preflight-test-" + itoa(os.Getpid())
	if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
		t.Fatal(err)
	}
	v := mode(t, "plain")
	t.Cleanup(func() {
		_ = v.cmd.Process.Kill()
		kerneltest.Eventually(t, "the cgroup to go", func() bool { return os.Remove(filepath.Join(dir, name)) == nil })
	})
	if err := os.WriteFile(filepath.Join(dir, name, "cgroup.procs"), []byte(itoa(v.pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := look(t, Options{PID: v.pid}).Tree.Cgroup.Path; filepath.Base(got) != name {
		t.Errorf("cgroup path %q", got)
	}
}

// TestRoots refuses what is no tree.
func TestRoots(t *testing.T) {
	find(t, look(t, Options{PID: os.Getpid()}), "self", Refuse)
	find(t, look(t, Options{PID: os.Getppid()}), "self", Refuse)
	find(t, look(t, Options{PID: 1}), "init", Refuse)
	if _, err := Process(t.Context(), Options{PID: 1 << 22}); !gone(err) {
		t.Errorf("no such process: %v", err)
	}
	if _, err := Process(t.Context(), Options{}); err == nil {
		t.Error("process 0 was looked at")
	}
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kerneltest.Eventually(t, "the zombie", func() bool {
		st, err := readStat("/proc/" + itoa(cmd.Process.Pid))
		return err == nil && st.state == 'Z'
	})
	find(t, look(t, Options{PID: cmd.Process.Pid}), "dead", Refuse)
	_ = cmd.Wait()
}
