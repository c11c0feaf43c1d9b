package store

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemote leaves a directory at the source, in one that moves as a whole because the tree writes there.
func TestRemote(t *testing.T) {
	r := newRig(t)
	fill(t, r.src, map[string]string{"srv/app/data": "data", "srv/app/far/big": "far", "srv/app/far/in/x": "x", "srv/other": "o", "proc/": "", "dev/": ""})
	far := open(t, r.mnt+"/srv/app/far/big", unix.O_RDWR)
	data := open(t, r.mnt+"/srv/app/data", unix.O_RDWR)
	r.move(Want{Cwd: []string{"/srv/app/far/in"}, Remote: []string{"/srv/app/far"}})
	s := r.rested()
	for i := range 3 { // written all the time
		if _, err := unix.Pwrite(far, []byte{'A' + byte(i)}, 0); err != nil {
			t.Fatal(err)
		}
		must(t, os.WriteFile(r.mnt+"/srv/app/far/in/made", []byte("made"), 0o644))
		s = r.rested()
	}
	if len(s.Undecided) > 0 {
		t.Errorf("undecided: %v", s.Undecided)
	}
	if p := r.local(far); p != "" {
		t.Errorf("what stays is at %s", p)
	}
	if p := r.local(data); p != r.root+"/srv/app/data" {
		t.Errorf("the open file is at %q", p)
	}
	if l, err := os.ReadDir(filepath.Join(r.root, "srv/app/far")); err != nil || len(l) > 0 {
		t.Errorf("the place of what stays holds %v, %v", l, err)
	}
	for p, want := range map[string]string{r.root + "/srv/app/data": "data", r.root + "/srv/other": "o", r.src + "/srv/app/far/big": "Car", r.src + "/srv/app/far/in/made": "made"} {
		if b, err := os.ReadFile(p); string(b) != want {
			t.Errorf("%s holds %q, %v", p, b, err)
		}
	}
}

// TestRemoteRefused has paths that can't stay, each named.
func TestRemoteRefused(t *testing.T) {
	r := newRig(t)
	fill(t, r.src, map[string]string{"srv/file": "f", "srv/far/in/x": "x", "proc/": "", "dev/": ""})
	r.move(Want{With: []string{"/srv/far/in"}, Remote: []string{"/srv/file", "/srv/none", "/proc/sys", "/", "/srv/far"}})
	got := map[string]string{}
	for _, u := range r.rested().Undecided {
		got[u.Path] = u.Reason
	}
	for p, want := range map[string]string{
		"/srv/file": "is to stay at the source, but is no directory there", "/srv/none": "is to stay at the source, but is no directory there",
		"/proc/sys": "can't stay at the source", "/": "can't stay at the source", "/srv/far/in": "is to come along, but /srv/far stays at the source",
	} {
		if got[p] != want {
			t.Errorf("%s: %q, not %q", p, got[p], want)
		}
		delete(got, p)
	}
	if len(got) > 0 {
		t.Errorf("undecided, too: %v", got)
	}
}
