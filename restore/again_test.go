package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// An agent may die right after it has let a tree go, and the next one does so again: it is told the same, not that criu, which has ended, failed.
func TestFinishAgain(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 4))
	first := l.release(t)
	for range 20 { // which of two channels was looked at was left to chance once
		if err := l.c.Finish(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if r := l.release(t); r != first {
			t.Fatalf("released again it says %+v, at first %+v", r, first)
		}
	}
	l.running(t)
	l.drainAndEnd(t)
}

// A Close that failed is made good by the next.
func TestCloseAgain(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 4))
	busy := filepath.Join(l.c.work[0], "busy")
	if err := errors.Join(os.Mkdir(busy, 0o700), unix.Mount("tmpfs", busy, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	if err := l.c.Close(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("with a mount in its directory Close says %v", err)
	}
	if err := errors.Join(unix.Unmount(busy, 0), l.c.Close()); err != nil {
		t.Errorf("again: %v", err)
	}
	for _, d := range append(l.c.work, l.c.groups.top) {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", d, err)
		}
	}
	if err := l.d.Abort(); err != nil {
		t.Fatal(err)
	}
}

// criu is killed while it holds the tree: that is told, the tree can't be let go any more, and has not run.
func TestCRIUKilledHeld(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 4))
	before := l.counters()
	if err := unix.Kill(criuOf(t, l.c.PID()), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	event(t, l.c, EventNeverRuns)
	if err := l.c.Finish(testContext(t)); !errors.Is(err, ErrNeverRuns) {
		t.Errorf("Finish says %v", err)
	}
	if _, err := l.c.Release(testContext(t)); !errors.Is(err, ErrNeverRuns) {
		t.Errorf("Release says %v", err)
	}
	if err := l.c.Close(); err != nil {
		t.Fatal(err)
	}
	if l.counters() != before {
		t.Error("the tree has run")
	}
	if err := l.d.Abort(); err != nil {
		t.Fatal(err)
	}
	l.running(t)
}

// criuOf is the criu below a guardian: the one of its children that has been told to restore.
func criuOf(t *testing.T, guardian int) int {
	t.Helper()
	var b []byte
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", guardian)) // the pattern is good
	for _, f := range tasks {
		more, _ := os.ReadFile(f) // the thread may have ended
		b = append(append(b, ' '), more...)
	}
	for f := range strings.FieldsSeq(string(b)) {
		cmd, _ := os.ReadFile("/proc/" + f + "/cmdline") // another may have ended
		if pid, err := strconv.Atoi(f); err == nil && strings.Contains(string(cmd), "criu") {
			return pid
		}
	}
	t.Fatal("no criu below the guardian")
	return 0
}

// A guardian that is no more has not been told to let its tree go.
func TestNotTold(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 4))
	if err := unix.Kill(l.c.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-l.c.Done()
	if err := l.c.Finish(testContext(t)); !errors.Is(err, ErrNotTold) || !errors.Is(err, ErrDead) {
		t.Errorf("Finish says %v", err)
	}
	if err := errors.Join(l.c.Close(), l.d.Abort()); err != nil {
		t.Fatal(err)
	}
	l.running(t)
}
