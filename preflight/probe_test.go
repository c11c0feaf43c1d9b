package preflight

import (
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestAcceptLoss goes on without the protection, but says so.
func TestAcceptLoss(t *testing.T) {
	for mode_, code := range map[string]string{"landlock": "landlock", "mdwe": "mdwe", "mseal": "mseal"} {
		r := look(t, Options{PID: mode(t, mode_).pid, AcceptLoss: true})
		find(t, r, code, Warn)
		if err := r.Err(); err != nil {
			t.Error(err)
		}
	}
}

// TestNoProbe leaves the process running; what it may hide is said.
func TestNoProbe(t *testing.T) {
	r := look(t, Options{PID: mode(t, "landlock").pid, NoProbe: true})
	find(t, r, "landlock-unknown", Warn)
	if r.Has("landlock") {
		t.Error("Landlock was seen without asking")
	}
	if r := look(t, Options{PID: mode(t, "nnp").pid}); r.Has("landlock-unknown") {
		t.Error("it was asked, and is unknown")
	}
}

// TestProbeOtherUser asks a process of another user, and one in another PID namespace.
func TestProbeOtherUser(t *testing.T) {
	kerneltest.Leaks(t)
	// The victim's directory is root's: the user gets a copy of the open file.
	exe, err := os.Open(victimPath)
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	for mode_, want := range map[string]bool{"landlock": true, "nnp": false} {
		for _, flags := range []uintptr{0, syscall.CLONE_NEWPID} {
			v := start(t, func(c *execCmd) {
				c.Path, c.Args = "/proc/self/fd/3", []string{"victim", mode_}
				c.ExtraFiles = []*os.File{exe}
				c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
				c.SysProcAttr.Cloneflags = flags
			}, victimPath)
			r := look(t, Options{PID: v.pid})
			if r.Has("landlock") != want || r.Has("landlock-unknown") {
				t.Errorf("%s with namespaces %#x: %v", mode_, flags, r.Findings)
			}
		}
	}
}

// TestProbeUnderSeccomp asks a process whose filter kills it for the very calls that are asked.
func TestProbeUnderSeccomp(t *testing.T) {
	v := mode(t, "seccomp_strict")
	eventually(t, "the filter", func() bool {
		st, err := readStatus("/proc/" + itoa(v.pid))
		return err == nil && st["Seccomp"] == "2"
	})
	for range 20 {
		if r := look(t, Options{PID: v.pid}); r.Err() != nil || r.Has("landlock-unknown") {
			t.Fatal(r.Findings)
		}
	}
	if _, err := v.in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 6)
	if _, err := v.out.Read(line); err != nil || string(line) != "alive\n" {
		t.Errorf("it said %q, %v", line, err)
	}
}

// TestProbeIsHarmless probes a process many times while it checks each of its results: registers, sleeps that are long
// enough, signal masks, signals that are waited for, pipes.
func TestProbeIsHarmless(t *testing.T) {
	v := mode(t, "busy")
	var failed strings.Builder
	log := slog.New(slog.NewTextHandler(&failed, &slog.HandlerOptions{Level: slog.LevelDebug}))
	defer func() {
		// It may be in the middle of a vfork, but not each time.
		if n := strings.Count(failed.String(), "ask for MDWE"); n > 50 {
			t.Errorf("%d of 100 probes got no answer: %s", n, failed.String()[:1000])
		}
	}()
	for i := range 100 {
		r, err := Process(t.Context(), Options{PID: v.pid, Log: log})
		if err != nil {
			t.Fatalf("after %d probes: %v, it said %v", i, err, await(t, v.out))
		}
		if r.Has("landlock") || r.Has("mdwe") {
			t.Fatal(r.Findings)
		}
	}
	v.in.Close()
	if said := await(t, v.out); !strings.HasPrefix(strings.Join(said, " "), "rounds ") {
		t.Errorf("it said %q", said)
	}
}
