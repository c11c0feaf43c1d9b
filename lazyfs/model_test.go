package lazyfs

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fsmodel"
)

// TestModel gives the mount and a plain directory the same random operations: a program must not see a difference.
func TestModel(t *testing.T) {
	for seed := range uint64(6) {
		model(t, seed, newRig(t, true), func(int) {})
	}
}

// TestModelCut is TestModel with connections that are lost all the time, after any byte.
func TestModelCut(t *testing.T) {
	for seed := range uint64(4) {
		r := newRigWith(t, true, helperConf{Src: t.TempDir(), Store: t.TempDir(), Cuts: seed + 1})
		model(t, seed+100, r, func(int) {})
		var n int
		if _, err := fmt.Sscanf(r.say("lost", "lost"), "lost %d", &n); err != nil || n < 10 {
			t.Errorf("seed %d: %d connections were lost, %v", seed, n, err)
		}
	}
}

func model(t *testing.T, seed uint64, r *rig, before func(step int)) {
	t.Helper()
	fsmodel.Compare(t, seed, 1500, r.mnt, r.src, func(_ *fsmodel.Dir, step int) { before(step) })
}

func TestReadahead(t *testing.T) {
	r := newRig(t, true)
	var st unix.Stat_t
	must(t, unix.Stat(r.mnt, &st))
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if major*100+minor < 616 {
		t.Skip("before Linux 6.16 the daemon can't find the connection, and the kernel's own readahead stays")
	}
	if b, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", unix.Minor(st.Dev))); err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(readAhead) {
		t.Errorf("readahead %q, %v", b, err)
	}
}
