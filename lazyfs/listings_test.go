package lazyfs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestListingsAge: a list is the kernel's to keep as long as names are, from the oldest on that it may have.
func TestListingsAge(t *testing.T) {
	var l listings
	check := func(when string, keep bool) {
		t.Helper()
		f := l.opens(7)
		if f&fuse.FOPEN_CACHE_DIR == 0 || f&fuse.FOPEN_KEEP_CACHE != 0 != keep {
			t.Errorf("%s: flags %x, keep %v wanted", when, f, keep)
		}
	}
	check("never listed", false)
	now := time.Now().Add(time.Hour) // it does not age while the test runs
	l.begun(7, now)
	check("listed", true)
	l.begun(7, now.Add(time.Second))
	if got := l.since[7]; !got.Equal(now) {
		t.Errorf("listed twice: counted from %v, not %v", got, now)
	}
	l.begun(7, time.Now().Add(-nameLife))
	check("listed from what is old", false)
	l.begun(7, now)
	check("listed after that", true)
	l.forgot(7)
	check("forgotten", false)
}

// TestListAgain lists a directory again and again: the kernel does not ask for what it has, sees each change by the tree at once, and one by somebody else when the
// list is old.
func TestListAgain(t *testing.T) {
	kerneltest.Leaks(t)
	r := newRig(t, true)
	d := filepath.Join(r.mnt, "d")
	must(t, os.Mkdir(d, 0o755))
	var want []string
	list := func(when string) {
		t.Helper()
		ents, err := os.ReadDir(d)
		must(t, err)
		var got []string
		for _, e := range ents {
			got = append(got, e.Name())
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("%s: %v, want %v", when, got, want)
		}
	}
	for range 3 {
		for _, name := range []string{"a", "b", "c"} {
			write(t, filepath.Join(d, name), "x")
			want = append(want, name)
			list("one more")
			list("again")
		}
		must(t, os.Rename(filepath.Join(d, "a"), filepath.Join(d, "z")))
		want[slices.Index(want, "a")] = "z"
		list("renamed")
		must(t, os.Rename(filepath.Join(d, "z"), filepath.Join(r.mnt, "out")))
		want = slices.DeleteFunc(want, func(s string) bool { return s == "z" })
		list("moved away")
		must(t, os.Link(filepath.Join(r.mnt, "out"), filepath.Join(d, "l")))
		want = append(want, "l")
		list("linked")
		for _, name := range slices.Clone(want) {
			must(t, os.Remove(filepath.Join(d, name)))
			want = slices.DeleteFunc(want, func(s string) bool { return s == name })
			list("one less")
		}
	}
	write(t, filepath.Join(d, "a"), "x")
	want = []string{"a"}
	list("as it stays")
	began := r.lists("young")
	for range 10 {
		list("unchanged")
	}
	if n := r.lists("young") - began; n >= 10 { // fewer if memory is short, else none
		t.Errorf("the kernel asked %d times for what it has", n)
	}
	write(t, filepath.Join(r.src, "d", "theirs"), "x")
	want = append(want, "theirs")
	r.lists("old")
	list("others at the source made one more")
}

// shift makes all lists as old as one told then, and tells how many were begun.
func (l *listings) shift(to time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for node := range l.since {
		l.since[node] = to
	}
	return l.count
}

func (r *rig) lists(word string) (begun int) {
	r.t.Helper()
	line := r.say(word, word)
	if _, err := fmt.Sscanf(line, word+" %d", &begun); err != nil {
		r.t.Fatalf("%q: %v", line, err)
	}
	return begun
}
