package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestPrivileges: the handler, which reads from the network, has given up what it does not need, in all its threads and after it has brought
// pages; the guardian and the tree have not, since the tree must get back exactly what it had.
func TestPrivileges(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 64))
	root := l.release(t)
	l.running(t)
	kerneltest.Eventually(t, "the handler has begun", func() bool { // it is confined before it reads anything, but nobody waited for that
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.h.PID()))
		return err == nil && strings.Contains(string(b), "Seccomp:\t2\n")
	})
	confined := []string{"CapEff:\t0000000000800004\n", "CapPrm:\t0000000000800004\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"}
	free := []string{"NoNewPrivs:\t0\n", "Seccomp:\t0\n"}
	for what, p := range map[string]struct {
		pid  int
		want []string
	}{"handler": {l.h.PID(), confined}, "guardian": {l.c.PID(), free}, "tree": {root.PID, free}} {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("%s has no threads: %v", what, err)
		}
		for _, f := range threads {
			b, err := os.ReadFile(f)
			if os.IsNotExist(err) {
				continue
			}
			for _, want := range p.want {
				if !strings.Contains(string(b), want) {
					t.Errorf("%s: %q is not in %s:\n%s", what, want, f, b)
				}
			}
		}
	}
	l.drainAndEnd(t)
}
