package dump

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/internal/kerneltest"
)

// program is a C program that writes one byte to its standard output when it is ready.
func program(t *testing.T, src string, args ...string) *exec.Cmd {
	t.Helper()
	bin := kerneltest.CompileC(t, src, "-D_GNU_SOURCE")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.Command(bin, args...)
	cmd.Stdin, cmd.Stderr = null, null
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestTCP: an established connection is counted, and is as it was after a roll-back.
func TestTCP(t *testing.T) {
	need(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := program(t, `
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int c, char **v) {
	close_range(3, ~0U, 0);
	int s = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in a = {AF_INET, htons(atoi(v[1])), {htonl(INADDR_LOOPBACK)}};
	if (connect(s, (void *)&a, sizeof a)) return 1;
	write(1, "x", 1);
	close(1);
	char b;
	while (read(s, &b, 1) == 1) { b++; write(s, &b, 1); }
	return 0;
}`, fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	d := prepare(t, Options{PID: cmd.Process.Pid})
	if _, err := d.Freeze(testContext(t)); err == nil {
		t.Error("an established connection was dumped without being asked for")
	}
	d = prepare(t, Options{PID: cmd.Process.Pid, TCPClose: true})
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if r.TCPClosed != 1 {
		t.Errorf("%d connections", r.TCPClosed)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	b := []byte{41}
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, b); err != nil || b[0] != 42 {
		t.Errorf("%v, %v", b, err)
	}
}

const remapSource = `
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(int c, char **v) {
	close_range(3, ~0U, 0);
	char name[4096], other[4096];
	snprintf(name, sizeof name, "%s/name", v[1]);
	snprintf(other, sizeof other, "%s/other", v[1]);
	int f = open(name, O_RDWR | O_CREAT, 0600);
	if (f < 0 || link(name, other) || unlink(name)) return 1;
	write(1, "x", 1);
	close(1);
	for (;;) pause();
}`

// TestLinkRemap: CRIU's name is there while the tree is frozen and gone after a roll-back.
func TestLinkRemap(t *testing.T) {
	need(t)
	dir := t.TempDir()
	cmd := program(t, remapSource, dir)
	d := prepare(t, Options{PID: cmd.Process.Pid})
	if _, err := d.Freeze(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 2 || !strings.HasPrefix(got[0], "link_remap.") || strings.HasSuffix(got[0], remapSuffix) {
		t.Errorf("while frozen: %v", got)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("after the roll-back: %v", got)
	}

	d = prepare(t, Options{PID: cmd.Process.Pid})
	if _, err := d.Freeze(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := d.Granted(); err != nil {
		t.Fatal(err)
	}
	if err := d.KillTree(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("after the kill: %v", got)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range list {
		names = append(names, d.Name())
	}
	return names
}

func TestUnhidden(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 2, 1, nil)
	o := options(t, c)
	o.Unhidden = true
	d := prepare(t, o)
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if r.Unhidden == "" {
		t.Error("no reason given")
	}
	r.Unhidden = ""
	checkImages(t, c, r)
	var stored int64
	pages, _ := filepath.Glob(filepath.Join(r.ImagesDir, "pages-*.img"))
	for _, p := range pages {
		if fi, err := os.Stat(p); err == nil {
			stored += fi.Size()
		}
	}
	if stored < 2*16<<20 {
		t.Errorf("%d bytes of pages", stored)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	c.runs()
}

// TestCgroupsPutBack: each process goes back to the cgroup it came from.
func TestCgroupsPutBack(t *testing.T) {
	need(t)
	c := startChecker(t, 8, 1, 2, nil)
	h, err := openHierarchy()
	if err != nil {
		t.Fatal(err)
	}
	defer h.root.Close()
	base := fmt.Sprintf("lazymig-test-%d", os.Getpid())
	for _, cg := range []string{base, base + "/one", base + "/two"} {
		if err := unix.Mkdirat(int(h.root.Fd()), cg, 0o755); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := h.remove(cg); err != nil {
				t.Error(err)
			}
		}()
	}
	home, err := h.of(c.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for pid := range c.cgroups() {
			_ = h.move(pid, home)
		}
	}()
	child := c.real(uint32(c.word(wordChild)))
	if err := errors.Join(h.move(c.pid, base+"/one"), h.move(child, base+"/two")); err != nil {
		t.Fatal(err)
	}
	before := c.cgroups()
	o := options(t, c)
	d := prepare(t, o)
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(r.Cgroup, base+"/one/") {
		t.Errorf("the tree is in %s, away from its limits", r.Cgroup)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	c.runs()
	c.clean(before, o.ID)

	// In a cgroup that is frozen already nothing can be done.
	if err := h.freeze(testContext(t), base, freezeLimit); err != nil {
		t.Fatal(err)
	}
	if d, err := Prepare(testContext(t), options(t, c)); err == nil {
		d.Close()
		t.Error("no error from a frozen cgroup")
	}
	if err := h.thaw(base); err != nil {
		t.Fatal(err)
	}
	c.runs()
	c.clean(before, o.ID)
}

// TestPIDNamespace dumps a tree below an init, as a second migration does.
func TestPIDNamespace(t *testing.T) {
	need(t)
	kerneltest.NeedProgram(t, "unshare")
	src, err := os.ReadFile("testdata/checker.c")
	if err != nil {
		t.Fatal(err)
	}
	bin := kerneltest.CompileC(t, string(src), "-pthread")
	shared := filepath.Join(t.TempDir(), "shared")
	if err := os.WriteFile(shared, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(shared, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("unshare", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", `setsid "$@" & wait`, "sh", bin, shared, "16", "2", "1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	c := &checker{t: t, cmd: cmd, file: f}
	kerneltest.Eventually(t, "checker is ready", func() bool { return c.word(wordReady) == 1 })
	all, err := enumerateDeep(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range all {
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); exe == bin && c.pid == 0 {
			c.pid = pid
		}
	}
	before := c.cgroups()
	o := options(t, c)
	d := prepare(t, o)
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	checkImages(t, c, r)
	if root := r.Tasks[0]; root.PID != c.pid || int(root.ID) == c.pid {
		t.Errorf("root %+v, pid %d", root, c.pid)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	ticks := c.word(wordTicks)
	kerneltest.Eventually(t, "the tree runs", func() bool { return c.word(wordTicks) > ticks+50 })
	c.clean(before, o.ID)
}

// enumerateDeep lists descendants in whatever PID namespaces.
func enumerateDeep(pid int) ([]int, error) {
	list := []int{pid}
	for i := 0; i < len(list); i++ {
		kids, err := children(list[i])
		if err != nil {
			return nil, err
		}
		list = append(list, kids...)
	}
	return list, nil
}

// TestSharedMounts: where the tree's mounts are shared with another namespace, nothing stays there either.
func TestSharedMounts(t *testing.T) {
	need(t)
	peer := exec.Command("sleep", "1000")
	c := startCheckerBy(t, func(cmd *exec.Cmd) (err error) {
		criu.OnThrowawayThread(func() {
			err = errors.Join(
				unix.Unshare(unix.CLONE_NEWNS),
				unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""),
				cmd.Start(),
				unix.Unshare(unix.CLONE_NEWNS), // a copy whose mounts are peers
				peer.Start(),
			)
		})
		return err
	}, 8, 1, 1, nil)
	defer func() {
		_ = peer.Process.Kill()
		_ = peer.Wait()
	}()
	smapsBinds := func(pid int) int {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "/smaps ")
	}
	before := c.cgroups()
	o := options(t, c)
	seen := 0
	o.hooks.beforeAck = func(int) { seen = smapsBinds(peer.Process.Pid) }
	d := prepare(t, o)
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	checkImages(t, c, r)
	if seen == 0 {
		t.Error("the namespaces are no peers: this test shows nothing")
	}
	if n := smapsBinds(peer.Process.Pid); n != 0 {
		t.Errorf("%d binds are left in the other namespace", n)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	c.runs()
	c.clean(before, o.ID)
}
