package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/migrate"
	"github.com/lazymig/lazymig/preflight"
)

// checkTo runs `lazymig check --to B` for a process of A.
func (r *rig) checkTo(pid int) (all []preflight.Finding, code int) {
	r.t.Helper()
	return r.check(pid, "--to", r.l.B.Addr+":"+agentPort, "--tls-dir", r.keys)
}

// check runs `lazymig check` for a process of A.
func (r *rig) check(pid int, args ...string) (all []preflight.Finding, code int) {
	r.t.Helper()
	args = append([]string{"check", "--json", "--pid", fmt.Sprint(pid)}, args...)
	out, err := r.l.A.Command(r.ctx, r.lazymig, args...).Output()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		code = ee.ExitCode()
	} else if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		var f preflight.Finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			r.t.Fatalf("finding %q: %v", line, err)
		}
		all = append(all, f)
	}
	return all, code
}

// refused are the codes of the findings that refuse, each with its remedy.
func refused(t *testing.T, all []preflight.Finding) (codes []string) {
	t.Helper()
	for _, f := range all {
		if f.Level == preflight.Refuse {
			codes = append(codes, f.Code)
			if f.What == "" || f.Why == "" || f.Do == "" {
				t.Errorf("without what, why or do: %+v", f)
			}
		}
	}
	return codes
}

// TestCheckTo asks another host, which is well, and then lacks one thing after the other that a host of the lab can lack; package preflight takes away the
// rest (processor's flags, security profiles, …). What check refuses a migration does, too.
func TestCheckTo(t *testing.T) {
	r := newRig(t, "checker")
	a, b := r.l.A, r.l.B
	listen := func(port int) string {
		return fmt.Sprintf("import socket,time; s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('0.0.0.0', %d)); s.listen(); time.sleep(1000)", port)
	}
	p := r.spawn(a, "/usr/bin/python3", "-c", listen(8131))
	own := r.spawn(a, "/usr/bin/python3", "-c", strings.Replace(listen(8132), "0.0.0.0", a.Addr, 1))
	r.eventually("listeners", func() bool { return r.sh(a, "ss -Hltn 'sport = :8131 or sport = :8132' | wc -l") == "2" })
	all, code := r.checkTo(p.Pid)
	if no := refused(t, all); code != 0 || len(no) > 0 {
		t.Fatalf("check of two hosts that are well: %d, %q", code, no)
	}
	for _, want := range []string{"arch", "cpu-flags", "memory", "disk", "port", "lsm-profile", "target-criu", "clock"} {
		if !slices.ContainsFunc(all, func(f preflight.Finding) bool { return f.Code == want }) {
			t.Errorf("%s is not among what was looked at: %v", want, all)
		}
	}
	expect := func(pid int, want string) {
		t.Helper()
		all, code := r.checkTo(pid)
		if no := refused(t, all); code != 3 || !slices.Equal(no, []string{want}) {
			t.Errorf("check ended with %d, refused are %q, not %s", code, no, want)
		}
		if m := r.try(a, b, pid); m.code != 3 || m.get("frozen") != nil || m.get("failed") == nil || m.get("failed").SourceState != "running" {
			t.Errorf("%s: migrate ended with %d: %s", want, m.code, m.stderr)
		}
		r.sh(a, fmt.Sprint("kill -0 ", pid))
	}
	expect(own.Pid, "address-missing")
	taken := r.spawn(b, "/usr/bin/python3", "-c", listen(8131))
	r.eventually("listener on B", func() bool { return r.sh(b, "ss -Hltn 'sport = :8131' | wc -l") == "1" })
	expect(p.Pid, "port-taken")
	r.end(b, taken.Pid, "KILL")
	r.sh(b, "mount -t tmpfs -o size=32k none /var/lib/lazymig")
	expect(p.Pid, "disk")
	r.sh(b, "umount /var/lib/lazymig; mount -o remount,size=64k /run")
	expect(p.Pid, "run-space")
	r.sh(b, "mount -o remount,size=1g /run")
	if all, code := r.checkTo(p.Pid); code != 0 {
		t.Errorf("check ended with %d: %v", code, all)
	}
	r.clean()
}

// TestCheckForecast: check says what each mode would come to, and leaves the process as it was: not one mapping is tracked, no descriptor is left, it runs on with the right bytes.
func TestCheckForecast(t *testing.T) {
	r := newRig(t, "churn")
	a, b := r.l.A, r.l.B
	p := r.spawn(a, r.dir+"/churn", "96", "/srv/status")
	r.goesOn(a, "/srv/status")
	args := []string{"check", "--pid", fmt.Sprint(p.Pid), "--to", b.Addr + ":" + agentPort, "--tls-dir", r.keys}
	out, err := a.Command(r.ctx, r.lazymig, append(args, "--json")...).Output()
	if err != nil {
		t.Fatalf("check: %v\n%s", err, out)
	}
	var o migrate.Outlook
	for line := range strings.Lines(string(out)) {
		var f preflight.Finding
		if err := json.Unmarshal([]byte(line), &f); err != nil || f.Code != "forecast" {
			continue
		}
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatal(err)
		}
	}
	var modes []string
	for _, f := range o.Forecasts {
		modes = append(modes, f.Mode)
		if f.DowntimeMS <= 0 || f.Bytes == 0 || f.Mode == o.Best && o.Text == "" {
			t.Errorf("forecast: %+v", f)
		}
	}
	// How much was written and carried is left to chance on a busy machine.
	if want := []string{"post", "hybrid", "pre", "stop"}; !slices.Equal(modes, want) || !slices.Contains(want, o.Best) || o.Measured == nil || !o.Measured.Tracked || o.Measured.Line == 0 || o.Measured.Memory == 0 {
		t.Errorf("outlook: %+v, measured %+v\n%s", o, o.Measured, out)
	}
	if s := r.sh(a, fmt.Sprintf("grep -c '^VmFlags:.* uw' /proc/%d/smaps; ls -l /proc/%[1]d/fd | grep -c userfaultfd; true", p.Pid)); s != "0\n0" {
		t.Errorf("left in the process: %q mappings and descriptors", s)
	}
	text, err := a.Command(r.ctx, r.lazymig, args...).Output()
	if err != nil || !strings.Contains(string(text), "auto would choose this") {
		t.Errorf("check: %v\n%s", err, text)
	}
	t.Logf("%s", text)
	r.goesOn(a, "/srv/status")
	r.ended(a, a, p.Pid, "/srv/status")
	r.clean()
}

// TestCheckTerminal: standard streams on a terminal can't move; check says so, with the remedy, and migrate refuses.
func TestCheckTerminal(t *testing.T) {
	kerneltest.NeedProgram(t, "python3")
	r := newRig(t)
	a := r.l.A
	p := r.spawn(a, "/usr/bin/python3", "-c", "import pty; pty.spawn(['sleep', '998'])")
	var pid int
	r.eventually("program on a terminal", func() bool {
		_, err := fmt.Sscan(r.sh(a, "pgrep -x sleep; true"), &pid)
		return err == nil
	})
	all, code := r.check(pid)
	if no := refused(t, all); code != 3 || !slices.Equal(no, []string{"stdio"}) {
		t.Errorf("check ended with %d, refused are %q", code, no)
	}
	if m := r.try(a, r.l.B, pid); m.code != 3 || !strings.Contains(m.stderr, "a tty that python3") || !strings.Contains(m.stderr, "nohup") || !strings.Contains(m.stderr, "tmux") {
		t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.sh(a, fmt.Sprint("kill -0 ", pid))
	r.end(a, p.Pid, "KILL")
	r.clean()
}
