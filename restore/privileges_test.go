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
// pages, and the guardian when the tree, which descends from it, runs. The tree has not, since it must get back exactly what it had.
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
	confined := []string{"CapEff:\t0000000000804004\n", "CapPrm:\t0000000000804004\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"}
	filtered := []string{"NoNewPrivs:\t0\n", "Seccomp:\t2\n"}
	free := []string{"NoNewPrivs:\t0\n", "Seccomp:\t0\n"}
	lacks := func(pid int, wanted []string) string {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("process %d has no threads: %v", pid, err)
		}
		for _, f := range threads {
			b, err := os.ReadFile(f)
			if os.IsNotExist(err) {
				continue
			}
			for _, want := range wanted {
				if !strings.Contains(string(b), want) {
					return fmt.Sprintf("%q is not in %s:\n%s", want, f, b)
				}
			}
		}
		return ""
	}
	kerneltest.Eventually(t, "the handler to be confined", func() bool { return lacks(l.h.PID(), confined) == "" })
	if m := lacks(l.h.PID(), []string{"VmLck:\t       0 kB\n"}); m == "" {
		t.Error("the handler's memory may go to the swap")
	}
	if m := lacks(l.c.PID(), filtered); m != "" {
		t.Errorf("guardian: %s", m)
	}
	if m := lacks(root.PID, free); m != "" {
		t.Errorf("tree: %s", m)
	}
	l.drainAndEnd(t)
}
