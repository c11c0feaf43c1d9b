package unit

import (
	"errors"
	"fmt"
	"io/fs"
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

// calls are what the test has done in the namespaces of a systemd, where it is another process.
var calls = map[string]func(string) (any, error){
	"hold":     holdAsFound,
	"release":  func(n string) (any, error) { return "", Release(n, 600e6) },
	"disable":  func(n string) (any, error) { return "", Disable(n) },
	"enable":   func(n string) (any, error) { return "", Enable(n) },
	"watchdog": func(n string) (any, error) { return Watchdog(n) },
	"enabled":  func(n string) (any, error) { return Enabled(n) },
}

func holdAsFound(name string) (any, error) {
	watchdog, err := Watchdog(name)
	if err != nil {
		return nil, err
	}
	return Hold(name, watchdog)
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && calls[os.Args[1]] != nil {
		got, err := calls[os.Args[1]](os.Args[2])
		fmt.Println(got)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	kerneltest.Main(m)
}

// boot starts a service that systemd's watchdog kills again and again, two others, and a timer for the first.
var boot = kerneltest.SystemdBoot(`for n in moved left slow; do
	printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sleep 100000\nRestart=always\nRestartSec=100ms\nStartLimitIntervalSec=0\nWatchdogSec=2\nNotifyAccess=all\n[Install]\nWantedBy=test.target\n' > $n.service
	ln -s ../$n.service test.target.wants/
done
sed -i s/WatchdogSec=2/WatchdogSec=600/ slow.service
printf '[Unit]\nDefaultDependencies=no\n[Timer]\nOnActiveSec=100000\nUnit=moved.service\n' > late.timer
ln -s ../late.timer test.target.wants/`)

// host is a systemd of its own.
type host struct {
	t   *testing.T
	pid int
}

func newHost(t *testing.T) host {
	t.Helper()
	kerneltest.Need(t, kerneltest.Root)
	kerneltest.NeedProgram(t, "systemctl")
	cg, err := os.MkdirTemp(kerneltest.CgroupRoot(t), "systemd")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(cg)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("/bin/sh", "-c", boot)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP,
		UseCgroupFD: true, CgroupFD: int(dir.Fd()),
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // and all with it
		_ = cmd.Wait()
		removeAll(cg)
		if t.Failed() {
			t.Logf("systemd says:\n%s", out.String())
		}
	})
	h := host{t, cmd.Process.Pid}
	kerneltest.Eventually(t, "systemd to run the services", func() bool {
		return h.try("systemctl", "is-active", "slow.service") == "active"
	})
	return h
}

// removeAll removes a cgroup with all below.
func removeAll(cg string) {
	var all []string
	_ = filepath.WalkDir(cg, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, p)
		}
		return nil
	})
	slices.Reverse(all)
	for _, d := range all {
		_ = unix.Rmdir(d) // what stays is told as a leak
	}
}

// try runs a program there.
func (h host) try(args ...string) string {
	out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(h.pid), "-a", "--"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s: %v", out, err)
	}
	return strings.TrimSpace(string(out))
}

// do has a function of this package called there.
func (h host) do(what, name string) string {
	h.t.Helper()
	exe, err := filepath.Abs(os.Args[0])
	if err != nil {
		h.t.Fatal(err)
	}
	return h.try(exe, what, name)
}

func (h host) show(name string) string {
	return h.try("systemctl", "show", name, "-p", "Restart", "-p", "WatchdogUSec", "-p", "ActiveState", "--value")
}

func (h host) want(what, got, want string) {
	h.t.Helper()
	if got != want {
		h.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// TestUnit: a service that is held is neither killed by its watchdog nor started again when its process is killed; one beside it is both. What was taken from it
// comes back.
func TestUnit(t *testing.T) {
	kerneltest.Leaks(t)
	h := newHost(t)
	pid := func(name string) string { return h.try("systemctl", "show", name, "-p", "MainPID", "--value") }

	// Its watchdog may have just killed it.
	kerneltest.Eventually(t, "hold", func() bool { return h.do("hold", "moved.service") == "[late.timer]" })
	moved, left := pid("moved.service"), pid("left.service")
	h.want("held", h.show("moved.service"), "no\n0\nactive")
	kerneltest.Eventually(t, "the watchdog of the other to bark", func() bool { p := pid("left.service"); return p != left && p != "0" })
	h.want("process of the one that is held", pid("moved.service"), moved)
	h.want("enabled", h.do("enabled", "moved.service"), "true")
	h.want("disable", h.do("disable", "moved.service"), "")
	h.want("enabled", h.do("enabled", "moved.service"), "false")
	h.try("kill", "-KILL", moved)
	kerneltest.Eventually(t, "the end", func() bool { return h.show("moved.service") == "no\n0\nfailed" })
	h.want("release what is dead", h.do("release", "moved.service"), "")
	h.want("enable", h.do("enable", "moved.service"), "")
	h.want("enabled", h.do("enabled", "moved.service"), "true")

	slow := pid("slow.service")
	h.want("watchdog", h.do("watchdog", "slow.service"), "600000000")
	h.want("hold", h.do("hold", "slow.service"), "[]")
	h.want("watchdog", h.do("watchdog", "slow.service"), "0")
	h.want("held", h.show("slow.service"), "no\n0\nactive")
	for range 2 { // it may be said again
		h.want("release", h.do("release", "slow.service"), "")
		h.want("released", h.show("slow.service"), "always\n10min\nactive")
	}
	h.want("its process", pid("slow.service"), slow)
	h.want("what is left", h.try("ls", "-A", "/run/systemd/system"), "")
}

// TestAbove: a setting that stands above is noticed, and nothing stays.
func TestAbove(t *testing.T) {
	kerneltest.Leaks(t)
	h := newHost(t)
	h.try("sh", "-c", `mkdir /etc/systemd/system/slow.service.d; printf '[Service]\nRestart=always\n' > /etc/systemd/system/slow.service.d/99.conf`)
	if got := h.do("hold", "slow.service"); !strings.Contains(got, "Restart=always") || !strings.Contains(got, errNotHeld.Error()) {
		t.Errorf("hold: %q", got)
	}
	h.want("what is left", h.try("ls", "-A", "/run/systemd/system"), "")
	if got := h.do("hold", "nothing.service"); !strings.Contains(got, "nothing.service") || !strings.Contains(got, "not-found") {
		t.Errorf("hold a service that is not there: %q", got)
	}
}

func TestName(t *testing.T) {
	for _, n := range []string{"", "x", "x.scope", "../x.service", "a/b.service", ".service", "a b.service", "a\n.service"} {
		if err := check(n); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", n, err)
		}
	}
	for _, n := range []string{"redis.service", "postgresql@15-main.service", `dev-x\x2d.service`} {
		if err := check(n); err != nil {
			t.Error(err)
		}
	}
}
