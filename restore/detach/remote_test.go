package detach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestSwitchRemote leaves a directory where it is: its files stay as they are, and nothing leads from it to what has moved.
func TestSwitchRemote(t *testing.T) {
	kerneltest.Leaks(t)
	tr := startTree(t)
	before := tr.uses(tr.dev)
	var stayed unix.Stat_t
	if err := unix.Stat(filepath.Join(tr.old, "stays/f"), &stayed); err != nil {
		t.Fatal(err)
	}
	twin := true
	o := tr.options()
	o.Remote = []string{"/stays"}
	o.Settle = func(ctx context.Context, inodes []uint64) (Local, error) {
		l, err := tr.settle(ctx, inodes)
		if err == nil {
			err = errors.Join(os.RemoveAll(filepath.Join(tr.new, "stays")), os.Mkdir(filepath.Join(tr.new, "stays"), 0o755))
		}
		maps.DeleteFunc(l.Files, func(_ uint64, p string) bool { return strings.HasPrefix(p, "/stays") })
		if twin {
			l.Files[stayed.Ino] = "/twin"
		}
		return l, err
	}
	_, err := Switch(t.Context(), o)
	if s, stuck := errors.AsType[*Stuck](err); !stuck || len(s.Reasons) != 1 || !strings.Contains(err.Error(), "/stays/f stays at the source, but has another name that does not, /twin") {
		t.Fatalf("a file with a name in what stays and one that moves: %v", err)
	}
	if after := tr.uses(tr.dev); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("it used %v before and uses %v now", before, after)
	}
	tr.check()
	twin = false
	rep, err := Switch(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", rep)
	if rep.Remote != 2 {
		t.Errorf("%d files and directories stay, want 2", rep.Remote)
	}
	tr.check()
	if err := os.WriteFile(filepath.Join(tr.old, "stays/f"), []byte("stays"), 0); err != nil { // which the tree sees
		t.Fatal(err)
	}
	tr.check()
	tasks, err := tr.tasks()
	if err != nil {
		t.Fatal(err)
	}
	for _, use := range tr.uses(tr.dev) { // all processes have what was open before they were made
		link, _ := os.Readlink(use)
		ok := use == "mount at /stays" || strings.HasSuffix(use, "mapping of /stays/f") || filepath.Base(filepath.Dir(use)) == "fd" && (strings.HasSuffix(link, "/stays/f") || link == "/stays/in")
		ok = ok || filepath.Base(use) == "cwd" && link == "/stays/in" && slices.ContainsFunc(tasks, func(pid int) bool { return use == fmt.Sprintf("/proc/%d/cwd", pid) })
		if !ok {
			t.Errorf("still used: %s, which is %q", use, link)
		}
	}
}
