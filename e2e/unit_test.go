package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// checkerService is what a systemd runs.
const checkerService = `printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=%s 64 2 /srv/status\nRestart=always\nRestartSec=100ms\nWatchdogSec=600\nStandardInput=null\nStandardOutput=null\nStandardError=null\n[Install]\nWantedBy=test.target\n' $0 > checker.service
ln -s ../checker.service test.target.wants/`

// service is a checker that a systemd runs on A; lazymig migrate will run beside it.
func (r *rig) service() (show func(string) string, pid int) {
	r.t.Helper()
	kerneltest.NeedProgram(r.t, "systemctl")
	group, err := os.MkdirTemp(kerneltest.CgroupRoot(r.t), "systemd")
	if err != nil {
		r.t.Fatal(err)
	}
	p := r.spawn(r.l.A, "/bin/sh", "-c", "echo $$ > "+group+"/cgroup.procs; exec unshare --pid --fork --kill-child --mount --cgroup /bin/sh -c \"$0\" $1",
		kerneltest.SystemdBoot(checkerService), r.dir+"/checker")
	r.t.Cleanup(func() {
		p.Close()
		r.eventually("systemd's cgroups to be empty", func() bool {
			for _, d := range []string{"init.scope", "system.slice/checker.service", "system.slice", "."} {
				_ = unix.Rmdir(filepath.Join(group, d)) // a process is still ending there, or systemd has removed it
			}
			_, err := os.Stat(group)
			return os.IsNotExist(err)
		})
	})
	r.eventually("checker to check", func() bool { w, _ := r.status(r.l.A, "/srv/status"); return w == "run" })
	first := r.sh(r.l.A, "pgrep -f '^systemd --system'")
	r.enter = []string{"nsenter", "-t", first, "-a", "--"}
	show = func(what string) string {
		return r.sh(r.l.A, "nsenter -t "+first+" -a -- systemctl show checker.service --value -p "+what)
	}
	_, err = fmt.Sscan(show("MainPID"), &pid)
	if err != nil {
		r.t.Fatal(err)
	}
	return show, pid
}

// TestUnit moves a service of systemd, which neither starts it again when the frozen tree is killed nor at the next boot. One that could not be moved is systemd's as it was.
func TestUnit(t *testing.T) {
	r := newHosts(t, "checker")
	show, pid := r.service()
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=restore:" + gate})
	g := r.begin(r.l.A, r.l.B, pid, "--unit")
	r.parked(ag)
	if got := show("Restart -p WatchdogUSec"); got != "no\n0" {
		t.Errorf("while it is frozen: %q", got)
	}
	r.sh(r.l.A, strings.Join(r.enter, " ")+" "+r.lazymig+" abort "+r.id())
	r.sh(r.l.B, "touch "+gate)
	if m := g.wait(); m.code != 4 {
		t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.goesOn(r.l.A, "/srv/status")
	if got := show("MainPID -p Restart -p WatchdogUSec -p UnitFileState"); got != fmt.Sprintf("always\n10min\n%d\nenabled", pid) {
		t.Errorf("when it was given up: %q", got)
	}
	there, _ := r.move(r.l.A, r.l.B, pid, "--unit")
	r.goesOn(r.l.A, "/srv/status")
	r.eventually("systemd to be told", func() bool { return show("ActiveState -p UnitFileState -p Restart") == "always\nfailed\ndisabled" })
	r.ended(r.l.A, r.l.B, there, "/srv/status")
	r.eventually("source to end", func() bool { return slices.Contains(r.states(r.l.A), "source ended") })
}
