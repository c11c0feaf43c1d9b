package dump

import (
	"errors"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// granted freezes a checker and grants it; the dump's process counts as dead from then on.
func granted(t *testing.T, c *checker) Left {
	t.Helper()
	d := prepare(t, options(t, c))
	if _, err := d.Freeze(testContext(t)); err != nil {
		t.Fatal(err)
	}
	l := d.Left()
	if err := d.Granted(); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestThawLeft: a granted tree that is taken back runs on, and who was stopped before stays so.
func TestThawLeft(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 4, 2, nil)
	before := c.cgroups()
	l := granted(t, c)
	d, err := Adopt(l, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil { // it changes nothing
		t.Fatal(err)
	}
	ticks := c.word(wordTicks)
	if err := Thaw(l); err != nil {
		t.Fatal(err)
	}
	kerneltest.Eventually(t, "the tree runs", func() bool { return c.word(wordTicks) > ticks+50 })
	if n := c.word(wordBad); n != 0 {
		t.Errorf("%d wrong words", n)
	}
	if state, _, err := readStat(c.real(uint32(c.word(wordStopped)))); err != nil || state != 'T' {
		t.Errorf("the stopped child is in state %c (%v)", state, err)
	}
	c.clean(before, options(t, c).ID)
	if err := Thaw(l); !errors.Is(err, ErrGone) {
		t.Errorf("thawed again: %v", err)
	}
}

// TestAdoptKills: who takes a granted tree up freezes it if somebody has thawed it, and can kill it.
func TestAdoptKills(t *testing.T) {
	need(t)
	c := startChecker(t, 16, 4, 2, nil)
	l := granted(t, c)
	h, err := openHierarchy()
	if err != nil {
		t.Fatal(err)
	}
	defer h.root.Close()
	if err := h.thaw(l.Cgroup); err != nil {
		t.Fatal(err)
	}
	kerneltest.Eventually(t, "tasks to be stopped", func() bool { s, _, err := readStat(c.pid); return err == nil && s == 'T' })
	d, err := Adopt(l, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.await(testContext(t), l.Cgroup, "frozen", true, kerneltest.Patience); err != nil {
		t.Error(err)
	}
	if err := errors.Join(d.KillTree(), d.Close()); err != nil {
		t.Error(err)
	}
	if d, err = Adopt(l, nil); !errors.Is(err, ErrGone) {
		t.Errorf("a tree that is no more: %v", err)
	} else if err := errors.Join(d.KillTree(), d.Close()); err != nil {
		t.Error(err)
	}
}
