package preflight

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestRefusals starts a real process for each obstacle. Each must be refused for that reason and for no other one.
func TestRefusals(t *testing.T) {
	kerneltest.Leaks(t)
	for _, c := range []struct {
		mode, arg, code string
	}{
		{"io_uring", "", "io-uring"},
		{"userfaultfd", "", "userfaultfd"},
		{"perf", "", "perf-event"},
		{"bpf_map", "", "bpf"},
		{"landlock_ruleset", "", "landlock-ruleset"},
		{"mptcp", "", "mptcp"},
		{"vsock", "", "vsock"},
		{"icmp", "", "socket-protocol"},
		{"sysv", "", "sysv-shm"},
		{"semaphores", "", "sysv-ipc"},
		{"queue", "", "sysv-ipc"},
		{"mqueue", "", "mqueue"},
		{"traced", "", "traced"},
		{"deadline", "", "deadline"},
		{"ns_child", "", "namespaces"},
		{"ns_thread", "", "namespaces"},
		{"files_thread", "", "own-descriptors"},
		{"aio_direct", "FILE", "aio-direct"},
		{"device", "/dev/fuse", "fuse"},
		{"device", "/dev/net/tun", "tun"},
		{"device", "/dev/kvm", "kvm"},
		{"secretmem", "", "secretmem"},
		{"mseal", "", "mseal"},
		{"mdwe", "", "mdwe"},
		{"landlock", "", "landlock"},
		{"pidfd_outside", "", "pidfd-outside"},
		{"netns_fd", "", "namespace-descriptor"},
		{"mount_outside", "", "mount-outside"},
		{"stuck", "", "uninterruptible"},
	} {
		t.Run(c.mode+filepath.Base(c.arg), func(t *testing.T) {
			if strings.HasPrefix(c.arg, "/dev/") {
				if _, err := os.Stat(c.arg); errors.Is(err, os.ErrNotExist) {
					t.Skip("this host has no " + c.arg)
				}
			}
			if c.arg == "FILE" {
				c.arg = filepath.Join(workDir(t), "file")
			}
			r := look(t, Options{PID: mode(t, c.mode, c.arg).pid})
			f := find(t, r, c.code, Refuse)
			if f.Why == "" || f.Do == "" || f.PID == 0 {
				t.Errorf("the refusal lacks a reason, a remedy or a process: %+v", f)
			}
			for _, f := range r.Findings {
				if f.Level == Refuse && f.Code != c.code && (c.mode != "stuck" || f.Code != "shared-memory-map") {
					t.Errorf("refused for another reason too: %s", f)
				}
			}
			var refused *Refused
			if err := r.Err(); !errors.As(err, &refused) || !strings.Contains(err.Error(), c.code) {
				t.Errorf("Err() = %v", err)
			}
		})
	}
}

// workDir is a directory that the tests' processes may use, on a real file system.
func workDir(t *testing.T) string { return t.TempDir() }

// TestHeldOutside shows objects that a process outside of the tree holds too: the tree is the child, its parent stays.
func TestHeldOutside(t *testing.T) {
	kerneltest.Leaks(t)
	for mode_, want := range map[string]struct {
		code  string
		level Level
	}{
		"shared_pipe":     {"pipe-outside", Refuse},
		"shared_eventfd":  {"eventfd-outside", Refuse},
		"shared_epoll":    {"object-outside", Refuse},
		"shared_memory":   {"memory-outside", Refuse},
		"shared_memfd":    {"memory-outside", Refuse},
		"shared_unix":     {"unix-shared", Refuse},
		"shared_listener": {"socket-shared", Warn},
	} {
		t.Run(mode_, func(t *testing.T) {
			v := mode(t, mode_)
			f := find(t, look(t, Options{PID: v.child(t)}), want.code, want.level)
			if !strings.Contains(f.What, "victim (") {
				t.Errorf("it does not say who: %s", f)
			}
			// Both together are a whole.
			if err := look(t, Options{PID: v.pid}).Err(); err != nil {
				t.Errorf("the tree with both is refused: %v", err)
			}
		})
	}
}

// TestAccepted shows processes that must pass.
func TestAccepted(t *testing.T) {
	for _, m := range []string{"plain", "kept", "unix_inside", "pidfd_inside", "pty_inside", "aio_ring", "tcp_pair", "nnp", "no_caps", "mount_own"} {
		t.Run(m, func(t *testing.T) {
			r := look(t, Options{PID: mode(t, m).pid})
			if err := r.Err(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
